"""Matrix products `y = W x (+ bias)`, straight from packed blocks or from float weights.

Every function computes some row tiles (8 rows each) for all tokens of a batch. Each (row, token) is accumulated in one
fixed order, group after group, whatever the blocking, so results are the same to the last bit for any split of rows or
tokens. Codes are multiplied as integers, exactly; `blocks.py` specifies them, `activations.py` the packed activations,
and `simd` how a grid of registers is spelt. Which rows a thread computes is `interpreter.py`'s affair.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear.activations import RECORD, START, STEP, SUM
from quantkit_kernels.simd import (
    I8_ROWS,
    TILES,
    U4_ROWS,
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
TOKENS = 4
"""Tokens of a grid of registers where there are as many. Its rows are those of the instruction set: a second one halves
the loads of activations, which bound a product before multiplications do."""
ROW_TILES = max(U4_ROWS, I8_ROWS) * TILES
"""Row tiles of the largest grid."""
AHEAD = 8192
"""Bytes between the weights in use and those asked for, where one token meets them: memory is hardly faster."""
MOST_GROUPS = 8
"""Groups from one request for weights to the next, at most; a power of two."""


@jit
def _prefetch_blocks(address, size, like):
    """Ask for as many blocks of `size` bytes as `like` has row tiles; returns the address behind them."""
    end = address + rows_of(like) * tiles_of(like) * size
    for line in range(address, end, 64):
        prefetch(line)
    return end


@jit
def _int4_tile(like, weight, row_scales, bias, x, x_stride, groups, y, y_stride, ahead, skip):
    """The row tiles of `like`, which is zero, times its tokens.

    Asks for the weights at `ahead` and on: with each group as many as it uses, except those whose number has bits in
    common with `skip`. A token alone skips none: it waits for nothing but weights.
    """
    stride = INT4_BLOCK * groups
    total, offset = like, like
    for group in range(groups):
        dot = zero_dot_u4(like)
        for chunk in range(4):
            codes = load_rows_bytes(weight + 32 * chunk, stride, like)
            dot = dot_u4(dot, low_nibbles(codes), broadcast_dwords(x + 8 * chunk, x_stride, like))
            dot = dot_u4(dot, high_nibbles(codes), broadcast_dwords(x + 8 * chunk + 4, x_stride, like))
        scaled = scale_u4(dot, load_scales_u4(weight + 128, stride, like))
        total = fma(scaled, broadcast_f32(x + STEP, x_stride, like), total)
        offset = fma(load_rows_i8(weight + 136, stride, like), broadcast_f32(x + SUM, x_stride, like), offset)
        if tokens_of(like) == 1 or not group & skip:
            ahead = _prefetch_blocks(ahead, INT4_BLOCK, like)
        weight += INT4_BLOCK
        x += RECORD
    total = fma(total, load_rows_f32(row_scales, 64, like), offset * load_rows_f32(row_scales + 32, 64, like))
    if bias:
        total = total + load_rows_f32(bias, 32, like)
    store_grid(y, 32 * tiles_of(like), y_stride, total)


@jit
def _int8_tile(like, weight, row_scales, bias, x, x_stride, groups, y, y_stride, ahead, skip):
    """As `_int4_tile`."""
    stride = INT8_BLOCK * groups
    total = like
    for group in range(groups):
        dot = start_dot_i8(x + START, x_stride, like)
        for chunk in range(8):
            codes = codes_i8(load_rows_bytes(weight + 32 * chunk, stride, like))
            dot = dot_i8(dot, codes, broadcast_dwords(x + 4 * chunk, x_stride, like))
        scaled = to_f32(dot) * load_scales_f32(weight + 256, stride, like)
        total = fma(scaled, broadcast_f32(x + STEP, x_stride, like), total)
        if tokens_of(like) == 1 or not group & skip:
            ahead = _prefetch_blocks(ahead, INT8_BLOCK, like)
        weight += INT8_BLOCK
        x += RECORD
    total = total * load_rows_f32(row_scales, 32, like)
    if bias:
        total = total + load_rows_f32(bias, 32, like)
    store_grid(y, 32 * tiles_of(like), y_stride, total)


def _packed_linear(tile_kernel, block_bytes, scale_bytes, rows):
    @jit
    def tiles(like, tile, last, weight, row_scales, bias, x, x_stride, groups, tokens, y, y_stride):
        """As many row tiles as `like` has, from `tile` on, times all tokens; returns the tile behind them.

        A register that row tiles or tokens do not fill takes some that are done once more.
        """
        tile = min(tile, last - tiles_of(like))
        behind = tile + rows_of(like) * tiles_of(like)
        size = (behind - tile) * groups * block_bytes
        weight, row_scales, y = weight + tile * groups * block_bytes, row_scales + tile * scale_bytes, y + 32 * tile
        bias = bias + 32 * tile if bias else 0
        ahead = weight + (size if tokens_of(like) > 1 else AHEAD)
        end = ahead + size
        # What comes next is asked for all the while that the tokens meet what is here: memory answers little by little.
        interval = 1
        while interval < MOST_GROUPS and 2 * interval * tokens_of(like) <= tokens:
            interval *= 2
        for token in range(0, tokens, tokens_of(like)):
            start = min(token, tokens - tokens_of(like))
            source, out = x + start * x_stride, y + start * y_stride
            skip = interval - 1 if ahead < end else -1
            tile_kernel(like, weight, row_scales, bias, source, x_stride, groups, out, y_stride, ahead, skip)
            ahead += size // interval
        return behind

    @jit
    def linear(first, last, weight, row_scales, bias, columns, x, x_stride, tokens, y, y_stride):
        """Row tiles `first` to `last` for all tokens; `x` rows as `activations.quantize` packs them, `y` f32 rows."""
        groups = (columns + 31) >> 5
        tile = first
        while tile < last:
            if tokens == 1 or last - first < TILES:
                like = zeros(1, 1)
                tile = tiles(like, tile, last, weight, row_scales, bias, x, x_stride, groups, tokens, y, y_stride)
            elif tokens < TOKENS:
                pair = zeros_tiles(1, 2)
                tile = tiles(pair, tile, last, weight, row_scales, bias, x, x_stride, groups, tokens, y, y_stride)
            elif last - tile < rows * TILES:
                row = zeros_tiles(1, TOKENS)
                tile = tiles(row, tile, last, weight, row_scales, bias, x, x_stride, groups, tokens, y, y_stride)
            else:
                grid = zeros_tiles(rows, TOKENS)
                tile = tiles(grid, tile, last, weight, row_scales, bias, x, x_stride, groups, tokens, y, y_stride)

    return linear


linear_int4 = _packed_linear(_int4_tile, INT4_BLOCK, 64, U4_ROWS)
linear_int8 = _packed_linear(_int8_tile, INT8_BLOCK, 32, I8_ROWS)


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
