"""Matrix products `y = W x (+ bias)`, straight from packed blocks or from float weights.

Every function computes some row tiles (8 rows each) for all tokens of a batch. Each (row, token) is accumulated in one
fixed order, group after group, whatever the blocking, so results are the same to the last bit for any split of rows or
tokens. Codes are multiplied as integers, exactly; `blocks.py` specifies them, `activations.py` the packed activations,
and `simd` how a grid of registers is spelt. Which rows a thread computes is `interpreter.py`'s affair.
"""

from __future__ import annotations

from .activations import RECORD, START, STEP, SUM
from .jit import jit
from .simd import (
    TILES,
    broadcast_dwords,
    broadcast_f32,
    codes_i8,
    dot_i8,
    dot_u4,
    fma,
    get_f32,
    high_nibbles,
    load_rows_bf16,
    load_rows_bytes,
    load_rows_f16,
    load_rows_f32,
    load_rows_i8,
    load_rows_partial_bf16,
    load_rows_partial_f16,
    load_rows_partial_f32,
    load_scales_f32,
    load_scales_u4,
    load_tokens_f32,
    load_tokens_partial_f32,
    low_nibbles,
    prefetch,
    put_f32,
    rows_of,
    scale_u4,
    start_dot_i8,
    store_grid,
    store_sums,
    tiles_of,
    to_f32,
    tokens_of,
    zero_dot_u4,
    zeros,
    zeros_tiles,
)

INT4_BLOCK, INT8_BLOCK = 144, 264
"""Bytes of a block, as `blocks.py` specifies them (a test compares)."""
AHEAD = 8192
"""Bytes between the weights in use and those asked for, where a few tokens are as fast as memory."""


@jit
def _prefetch_blocks(weight, stride, size, like):
    for tile in range(tiles_of(like)):
        for line in range(0, size, 64):
            prefetch(weight + tile * stride + line)


@jit
def _int4_tile(like, weight, row_scales, bias, x, x_stride, groups, y, y_stride, ahead):
    """The row tiles of a register of `like`, which is zero, times its tokens; asks for the weights `ahead` bytes on."""
    stride = INT4_BLOCK * groups
    total, offset = like, like
    for _ in range(groups):
        dot = zero_dot_u4(like)
        for chunk in range(4):
            codes = load_rows_bytes(weight + 32 * chunk, stride, like)
            dot = dot_u4(dot, low_nibbles(codes), broadcast_dwords(x + 8 * chunk, x_stride, like))
            dot = dot_u4(dot, high_nibbles(codes), broadcast_dwords(x + 8 * chunk + 4, x_stride, like))
        scaled = scale_u4(dot, load_scales_u4(weight + 128, stride, like))
        total = fma(scaled, broadcast_f32(x + STEP, x_stride, like), total)
        offset = fma(load_rows_i8(weight + 136, stride, like), broadcast_f32(x + SUM, x_stride, like), offset)
        if ahead:
            _prefetch_blocks(weight + ahead, stride, INT4_BLOCK, like)
        weight += INT4_BLOCK
        x += RECORD
    total = fma(total, load_rows_f32(row_scales, 64, like), offset * load_rows_f32(row_scales + 32, 64, like))
    if bias:
        total = total + load_rows_f32(bias, 32, like)
    store_grid(y, 0, y_stride, total)


@jit
def _int8_tile(like, weight, row_scales, bias, x, x_stride, groups, y, y_stride, ahead):
    """As `_int4_tile`."""
    stride = INT8_BLOCK * groups
    total = like
    for _ in range(groups):
        dot = start_dot_i8(x + START, x_stride, like)
        for chunk in range(8):
            codes = codes_i8(load_rows_bytes(weight + 32 * chunk, stride, like))
            dot = dot_i8(dot, codes, broadcast_dwords(x + 4 * chunk, x_stride, like))
        scaled = to_f32(dot) * load_scales_f32(weight + 256, stride, like)
        total = fma(scaled, broadcast_f32(x + STEP, x_stride, like), total)
        if ahead:
            _prefetch_blocks(weight + ahead, stride, INT8_BLOCK, like)
        weight += INT8_BLOCK
        x += RECORD
    total = total * load_rows_f32(row_scales, 32, like)
    if bias:
        total = total + load_rows_f32(bias, 32, like)
    store_grid(y, 0, y_stride, total)


def _packed_linear(tile_kernel, block_bytes, scale_bytes):
    @jit
    def few(weight, row_scales, bias, x, x_stride, groups, token, tokens, y, y_stride):
        """One row tile times the tokens from `token` on, up to 4 at a time."""
        ahead = AHEAD if token == 0 else 0
        while token < tokens:
            left = tokens - token
            if left > 2 and tokens > 3:  # a third one alone: computed together with one that is done
                start = min(token, tokens - 4)
                source, out = x + start * x_stride, y + start * y_stride
                tile_kernel(zeros(1, 4), weight, row_scales, bias, source, x_stride, groups, out, y_stride, ahead)
                token += 4
            elif left > 1:
                source, out = x + token * x_stride, y + token * y_stride
                tile_kernel(zeros(1, 2), weight, row_scales, bias, source, x_stride, groups, out, y_stride, ahead)
                token += 2
            else:
                source, out = x + token * x_stride, y + token * y_stride
                tile_kernel(zeros(1, 1), weight, row_scales, bias, source, x_stride, groups, out, y_stride, ahead)
                token += 1
            ahead = 0

    @jit
    def linear(first, last, weight, row_scales, bias, columns, x, x_stride, tokens, y, y_stride):
        """Row tiles `first` to `last` for all tokens; `x` rows as `activations.quantize` packs them, `y` f32 rows."""
        groups = (columns + 31) >> 5
        tile = first
        while tile < last:
            w, scales, out = weight + tile * groups * block_bytes, row_scales + tile * scale_bytes, y + 32 * tile
            tile_bias = bias + 32 * tile if bias else 0
            token, count = 0, 1
            if tokens >= 8 and last - tile >= TILES:
                count = TILES
                ahead = TILES * groups * block_bytes
                while tokens - token >= 8:
                    tile_kernel(
                        zeros_tiles(8), w, scales, tile_bias,
                        x + token * x_stride, x_stride, groups, out + token * y_stride, y_stride, ahead,
                    )  # fmt: skip
                    token += 8
                    ahead = 0
            if token < tokens:
                for _ in range(count):
                    few(w, scales, tile_bias, x, x_stride, groups, token, tokens, out, y_stride)
                    w += groups * block_bytes
                    scales += scale_bytes
                    out += 32
                    tile_bias = tile_bias + 32 if tile_bias else 0
            tile += count

    return linear


linear_int4 = _packed_linear(_int4_tile, INT4_BLOCK, 64)
linear_int8 = _packed_linear(_int8_tile, INT8_BLOCK, 32)


def _float_linear(load, load_partial, size):
    """Weights kept as floats: f32 arithmetic, 8 lanes along the columns, lanes summed at the end."""

    @jit
    def tile(like, weight, columns, bias, x, x_stride, y, y_stride):
        row_bytes = columns * size
        acc = like
        left = columns
        while left >= 8:
            acc = fma(load(weight, row_bytes, like), load_tokens_f32(x, x_stride, like), acc)
            weight += 8 * size
            x += 32
            left -= 8
        if left:
            acc = fma(
                load_partial(weight, row_bytes, left, like), load_tokens_partial_f32(x, x_stride, left, like), acc
            )
        store_sums(y, 4, y_stride, acc)
        if bias:
            for row in range(rows_of(like)):
                for token in range(tokens_of(like)):
                    place = y + 4 * row + token * y_stride
                    put_f32(place, get_f32(place) + get_f32(bias + 4 * row))

    @jit
    def linear(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride):
        """Row tiles `first` to `last` for all tokens; `x` and `y` f32 rows."""
        row = 8 * first
        end = min(8 * last, rows)
        while row < end:
            many = end - row >= 4
            w = weight + row * columns * size
            row_bias = bias + 4 * row if bias else 0
            token = 0
            while token < tokens:
                source, out = x + token * x_stride, y + token * y_stride + 4 * row
                if many and tokens - token >= 2:
                    tile(zeros(4, 2), w, columns, row_bias, source, x_stride, out, y_stride)
                    token += 2
                elif many:
                    tile(zeros(4, 1), w, columns, row_bias, source, x_stride, out, y_stride)
                    token += 1
                else:
                    tile(zeros(1, 1), w, columns, row_bias, source, x_stride, out, y_stride)
                    token += 1
            row += 4 if many else 1

    return linear


linear_f32 = _float_linear(load_rows_f32, load_rows_partial_f32, 4)
linear_f16 = _float_linear(load_rows_f16, load_rows_partial_f16, 2)
linear_bf16 = _float_linear(load_rows_bf16, load_rows_partial_bf16, 2)
