"""Matrix products `y = W x (+ bias)` straight from packed blocks: `int4`, `int5`, `int6` and `int8`.

Each function computes some row tiles (8 rows each) for all tokens of a batch. Each (row, token) is accumulated in one
fixed order, group after group, so results are the same to the last bit for any split of rows or tokens. Codes are
multiplied as integers, exactly.

`blocks.py` specifies the blocks, `activations.py` the int8 activations that they meet, and `simd` spells a grid of
registers. `plain.py` multiplies weights that are not packed. The interpreter decides which rows a thread computes.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear.activations import RECORD, START, STEP, SUM
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.simd import (
    I8_PREFETCH,
    I8_ROWS,
    MINS_APART,
    PLANE_ROWS,
    TILES,
    TOKENS,
    U4_ROWS,
    add_section_u,
    broadcast_dwords,
    broadcast_f32,
    codes_i8,
    dot_i8,
    dot_u,
    fma,
    high_nibbles,
    high_u5,
    high_u6,
    load_rows_bytes,
    load_rows_f32,
    load_rows_i8,
    load_scales_f32,
    load_scales_u,
    low_nibbles,
    low_u5,
    low_u6,
    next_section_u,
    next_u5,
    next_u6,
    prefetch,
    prefetch_level2,
    rows_of,
    scale_u,
    start_dot_i8,
    store_grid,
    sum_so_far_i8,
    sum_so_far_plane,
    sum_so_far_u,
    tiles_of,
    to_f32,
    to_i32,
    tokens_of,
    zero_dot_u,
    zeros,
    zeros_tiles,
)

INT4_BLOCK, INT5_BLOCK, INT6_BLOCK, INT8_BLOCK = (KINDS[name].block_bytes for name in ("int4", "int5", "int6", "int8"))
FEW_TOKENS = 4
"""Tokens of the grid of one row that is used where tokens or row tiles do not fill the largest."""
ROW_TILES = max(U4_ROWS, PLANE_ROWS, I8_ROWS) * TILES
"""Row tiles of the largest grid."""
FULL = TOKENS if MINS_APART else 0
"""Tokens of the grid whose mins are added apart; 0 for none."""
PREFETCH_DISTANCE = 8192
"""Bytes from the weights in use to those that are prefetched, for a single token, which is bound by memory."""
MOST_GROUPS = 8
"""Groups from one prefetch to the next, at most; a power of two."""


class GridRows(NamedTuple):
    """The rows of a grid's tokens, in two halves, which overlap where the grid has more tokens than there are."""

    address: int
    strides: tuple[int, int]
    """Bytes from one token to the next within a half, and from the first half to the second."""


class Upcoming(NamedTuple):
    """The weights that a tile prefetches while it multiplies: with each group as many bytes as the group has."""

    address: int
    skip: int
    """A bit mask: groups whose number shares a bit with it prefetch nothing. A single token never skips."""


@jit
def _groups(matrix):
    return (matrix.columns + 31) >> 5


@jit
def _grid_rows(like, rows, token, tokens):
    """The rows from a token on, as many as `like` has; those before it where fewer are left.

    Of all tokens there must be half as many as `like` has, or more.
    """
    start = max(0, min(token, tokens - tokens_of(like)))
    between = min(tokens, tokens_of(like)) - tokens_of(like) // 2
    return GridRows(rows.address + start * rows.stride, (rows.stride, between * rows.stride))


@jit
def _prefetch_blocks(address, size, like):
    """Prefetch as many blocks of `size` bytes as `like` has row tiles; returns the address behind them."""
    end = address + rows_of(like) * tiles_of(like) * size
    for line in range(address, end, 64):
        if tokens_of(like) == 1 and (size != INT8_BLOCK or I8_PREFETCH == 2):  # as many as can be are on their way
            prefetch_level2(line)
        else:
            prefetch(line)
    return end


@jit
def _add_mins(like, mins, stride, record, x, offset):
    """Add what the mins of one group contribute, before their units."""
    return fma(load_rows_i8(mins, stride, like), broadcast_f32(record + SUM, x.strides, like), offset)


@jit
def _int4_dots(like, weight, stride, record, x):
    """The dots of one group times their scales, f32."""
    dot = zero_dot_u(like)
    for chunk in range(4):
        codes = load_rows_bytes(weight + 32 * chunk, stride, like)
        dot = dot_u(dot, low_nibbles(codes), broadcast_dwords(record + 8 * chunk, x.strides, like))
        dot = dot_u(dot, high_nibbles(codes), broadcast_dwords(record + 8 * chunk + 4, x.strides, like))
        if tokens_of(like) == FULL:
            dot = sum_so_far_u(dot)
    scales = load_scales_u(weight + 128, stride, like)
    return scale_u(add_section_u(to_i32(like), dot, scales), scales)


def _dots_with_planes(kind, low_codes, high_codes, next_plane):
    """As `_int4_dots`, of a kind whose codes have more bits in planes."""
    high_bits = KINDS[kind].code_bits[1]
    chunks, chunks_of_plane = 4 >> high_bits, 4 // high_bits  # of a section, and of a plane
    scales_at = KINDS[kind].block_bytes - 16

    @jit
    def scaled_dots(like, weight, stride, record, x):
        total, dot = to_i32(like), zero_dot_u(like)
        plane = load_rows_bytes(weight + 128, stride, like)
        for first in range(0, 4, chunks):
            for chunk in range(first, first + chunks):
                if chunk == chunks_of_plane:
                    plane = load_rows_bytes(weight + 160, stride, like)
                codes = load_rows_bytes(weight + 32 * chunk, stride, like)
                dot = dot_u(dot, low_codes(codes, plane), broadcast_dwords(record + 8 * chunk, x.strides, like))
                dot = dot_u(dot, high_codes(codes, plane), broadcast_dwords(record + 8 * chunk + 4, x.strides, like))
                plane = next_plane(plane)
                if tokens_of(like) == TOKENS:
                    dot = sum_so_far_plane(dot)
            total = add_section_u(total, dot, load_scales_u(weight + scales_at, stride, like))
            dot = next_section_u(dot)
        return scale_u(total, load_scales_u(weight + scales_at, stride, like))

    return scaled_dots


_int5_dots = _dots_with_planes("int5", low_u5, high_u5, next_u5)
_int6_dots = _dots_with_planes("int6", low_u6, high_u6, next_u6)


def _tile_with_mins(scaled_dots, block_bytes):
    """The product of a grid of registers, of a kind that has mins: they end its blocks."""
    mins_at = block_bytes - 8

    @jit
    def tile(like, matrix, x, y, upcoming):
        """The first row tiles of a matrix, as many as `like` has, times as many tokens; `like` is zero."""
        stride = block_bytes * _groups(matrix)
        weight, record, ahead = matrix.data, x.address, upcoming.address
        total, offset = like, like
        for group in range(_groups(matrix)):
            scaled = scaled_dots(like, weight, stride, record, x)
            total = fma(scaled, broadcast_f32(record + STEP, x.strides, like), total)
            if tokens_of(like) != FULL:
                offset = _add_mins(like, weight + mins_at, stride, record, x, offset)
            if tokens_of(like) == 1 or not group & upcoming.skip:
                ahead = _prefetch_blocks(ahead, block_bytes, like)
            weight += block_bytes
            record += RECORD
        if tokens_of(like) == FULL:
            weight, record = matrix.data, x.address
            for _ in range(_groups(matrix)):
                offset = _add_mins(like, weight + mins_at, stride, record, x, offset)
                weight += block_bytes
                record += RECORD
        scales, mins = load_rows_f32(matrix.row_scales, 64, like), load_rows_f32(matrix.row_scales + 32, 64, like)
        total = fma(total, scales, offset * mins)
        if matrix.bias:
            total = total + load_rows_f32(matrix.bias, 32, like)
        store_grid(y.address, 32 * tiles_of(like), y.strides, total)

    return tile


@jit
def _int8_tile(like, matrix, x, y, upcoming):
    """As `_tile_with_mins`, of codes that have none."""
    stride = INT8_BLOCK * _groups(matrix)
    weight, record, ahead = matrix.data, x.address, upcoming.address
    total = like
    for group in range(_groups(matrix)):
        dot = start_dot_i8(record + START, x.strides, like)
        for chunk in range(8):
            codes = codes_i8(load_rows_bytes(weight + 32 * chunk, stride, like))
            dot = sum_so_far_i8(dot_i8(dot, codes, broadcast_dwords(record + 4 * chunk, x.strides, like)))
        scaled = to_f32(dot) * load_scales_f32(weight + 256, stride, like)
        total = fma(scaled, broadcast_f32(record + STEP, x.strides, like), total)
        if tokens_of(like) == 1 or not group & upcoming.skip:
            ahead = _prefetch_blocks(ahead, INT8_BLOCK, like)
        weight += INT8_BLOCK
        record += RECORD
    total = total * load_rows_f32(matrix.row_scales, 32, like)
    if matrix.bias:
        total = total + load_rows_f32(matrix.bias, 32, like)
    store_grid(y.address, 32 * tiles_of(like), y.strides, total)


@jit
def _interval_bits(tokens, at_once):
    """Groups from one prefetch to the next, as a power of two: the more tokens meet the weights in use, the slower the
    next ones come."""
    bits = 0
    while 1 << bits < MOST_GROUPS and 2 * at_once << bits <= tokens:
        bits += 1
    return bits


def _packed_linear(multiply, block_bytes, scale_bytes, grid_rows):
    """The product of one kind: `multiply` computes one grid of registers, of at most `grid_rows` rows."""

    @jit
    def from_tile(matrix, tile):
        """The matrix from a row tile on."""
        return Matrix(
            matrix.data + tile * _groups(matrix) * block_bytes,
            matrix.row_scales + tile * scale_bytes,
            matrix.bias + 32 * tile if matrix.bias else 0,
            matrix.rows,
            matrix.columns,
        )

    @jit
    def tiles(like, matrix, x, y, tokens, tile, last):
        """As many row tiles as `like` has, from `tile` on, times all tokens; returns the tile behind them.

        Where row tiles or tokens do not fill a grid, some are computed twice.
        """
        tile = min(tile, last - tiles_of(like))
        behind = tile + rows_of(like) * tiles_of(like)
        size = (behind - tile) * _groups(matrix) * block_bytes
        matrix, out = from_tile(matrix, tile), Rows(y.address + 32 * tile, y.stride)
        ahead = matrix.data + (size if tokens_of(like) > 1 else PREFETCH_DISTANCE)
        end = ahead + size
        bits = _interval_bits(tokens, tokens_of(like))
        for token in range(0, tokens, tokens_of(like)):
            upcoming = Upcoming(ahead, (1 << bits) - 1 if ahead < end else -1)
            multiply(like, matrix, _grid_rows(like, x, token, tokens), _grid_rows(like, out, token, tokens), upcoming)
            ahead += size >> bits
        return behind

    @jit
    def linear(matrix, x, y, tokens, first, last):
        """Row tiles `first` to `last` for all tokens; `x` rows as `activations.quantize` packs them, `y` f32 rows."""
        few = -tokens % TOKENS >= FEW_TOKENS  # the last of the largest grids would be half empty
        tile = first
        while tile < last:
            if tokens == 1 or last - first < TILES:
                tile = tiles(zeros(1, 1), matrix, x, y, tokens, tile, last)
            elif 2 * tokens <= FEW_TOKENS:
                tile = tiles(zeros_tiles(1, 2), matrix, x, y, tokens, tile, last)
            elif few or last - tile < grid_rows * TILES:
                tile = tiles(zeros_tiles(1, FEW_TOKENS), matrix, x, y, tokens, tile, last)
            else:
                tile = tiles(zeros_tiles(grid_rows, TOKENS), matrix, x, y, tokens, tile, last)

    return linear


linear_int4 = _packed_linear(_tile_with_mins(_int4_dots, INT4_BLOCK), INT4_BLOCK, 64, U4_ROWS)
linear_int5 = _packed_linear(_tile_with_mins(_int5_dots, INT5_BLOCK), INT5_BLOCK, 64, PLANE_ROWS)
linear_int6 = _packed_linear(_tile_with_mins(_int6_dots, INT6_BLOCK), INT6_BLOCK, 64, PLANE_ROWS)
linear_int8 = _packed_linear(_int8_tile, INT8_BLOCK, 32, I8_ROWS)
