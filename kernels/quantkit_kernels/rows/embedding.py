"""Rows of an embedding table of any kind, as f32."""

from __future__ import annotations

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    get_f32,
    get_i8,
    get_u8,
    load_bf16,
    load_codes_i8,
    load_codes_u4,
    load_codes_u5,
    load_codes_u6,
    load_f16,
    load_f32,
    load_rows_partial_bf16,
    load_rows_partial_f16,
    load_rows_partial_f32,
    splat,
    store,
    zeros,
)

F16, BF16, INT8, INT4, INT5, INT6 = (KINDS[name].code for name in ("f16", "bf16", "int8", "int4", "int5", "int6"))
INT8_BLOCK = KINDS["int8"].block_bytes


@jit
def embed(kind, weight, row_scales, row, columns, out):
    """`out` = row `row` of the table `weight` of `columns` columns."""
    if kind == INT4:
        _embed_int4(weight, row_scales, row, columns, out)
    elif kind == INT5:
        _embed_int5(weight, row_scales, row, columns, out)
    elif kind == INT6:
        _embed_int6(weight, row_scales, row, columns, out)
    elif kind == INT8:
        _embed_int8(weight, row_scales, row, columns, out)
    elif kind == F16:
        _embed_f16(weight + 2 * row * columns, columns, out)
    elif kind == BF16:
        _embed_bf16(weight + 2 * row * columns, columns, out)
    else:
        _embed_f32(weight + 4 * row * columns, columns, out)


@jit
def _codes_int4(row, chunk):
    """8 codes of a chunk, f32; `row` is where the row's first bytes of a block are."""
    return load_codes_u4(row + 32 * chunk, row, 0)


@jit
def _codes_int5(row, chunk):
    return load_codes_u5(row + 32 * chunk, row + 128, 2 * chunk)


@jit
def _codes_int6(row, chunk):
    return load_codes_u6(row + 32 * chunk, row + 128 + 32 * (chunk >> 1), 4 * (chunk & 1))


def _row_with_mins(load_codes, block_bytes):
    scales_at, mins_at = block_bytes - 16, block_bytes - 8

    @jit
    def embed_row(weight, row_scales, row, columns, out):
        lane = row & 7
        groups = (columns + 31) >> 5
        block = weight + (row >> 3) * groups * block_bytes
        row_scale = get_f32(row_scales + 64 * (row >> 3) + 4 * lane)
        row_min = get_f32(row_scales + 64 * (row >> 3) + 32 + 4 * lane)
        for column in range(0, columns, 8):
            chunk = (column >> 3) & 3
            scales = splat(row_scale * get_u8(block + scales_at + lane))
            offsets = splat(row_min * get_i8(block + mins_at + lane))
            store(out + 4 * column, load_codes(block + 4 * lane, chunk) * scales + offsets)
            block += block_bytes if chunk == 3 else 0

    return embed_row


_embed_int4 = _row_with_mins(_codes_int4, KINDS["int4"].block_bytes)
_embed_int5 = _row_with_mins(_codes_int5, KINDS["int5"].block_bytes)
_embed_int6 = _row_with_mins(_codes_int6, KINDS["int6"].block_bytes)


@jit
def _embed_int8(weight, row_scales, row, columns, out):
    lane = row & 7
    groups = (columns + 31) >> 5
    block = weight + (row >> 3) * groups * INT8_BLOCK
    row_scale = get_f32(row_scales + 32 * (row >> 3) + 4 * lane)
    for column in range(0, columns, 8):
        chunk = (column >> 2) & 7
        scales = splat(row_scale * get_u8(block + 256 + lane))
        store(out + 4 * column, load_codes_i8(block + 32 * chunk + 4 * lane, 32) * scales)
        block += INT8_BLOCK if chunk == 6 else 0


def _float_row(load, load_partial, size):
    @jit
    def copy_row(row, columns, out):
        for column in range(0, columns, 8):
            left = columns - column
            place = row + size * column
            store(out + 4 * column, load(place) if left >= 8 else load_partial(place, 0, left, zeros(1, 1)))

    return copy_row


_embed_f16 = _float_row(load_f16, load_rows_partial_f16, 2)
_embed_bf16 = _float_row(load_bf16, load_rows_partial_bf16, 2)
_embed_f32 = _float_row(load_f32, load_rows_partial_f32, 4)
