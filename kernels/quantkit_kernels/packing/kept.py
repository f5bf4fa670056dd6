"""Scales and mins that the source was quantized with: rounded to their stored bytes, so that its codes stay.

Where weights were quantized in groups of whole blocks, they lie on `scale * code + min` exactly, and a search that does
not know it would lose a second time. Here codes follow from the source's scales and mins, and only these are rounded.
`search.py` is for all other weights; `quantkit.quantization.kept_codes` takes for each tile what errs less.

An error `a` of a scale and `b` of a min, in a group of `n` weights with codes `c`, cost `sum (a c + b)^2`, which is
`a^2 sum c^2 + 2 a b sum c + n b^2`: the sums of a group are all that the choice of its bytes depends on.

1. The unit of a row's scales is chosen among some of which the largest scale is a whole, even number. That of its mins
   is a multiple of it, so that the mins of symmetric codes, `-8 * scale` of four bits, twice that with each more,
   are whole numbers of units where the scale is an even one.
2. A scale is rounded to the nearest unit, or to one of its neighbours; the min follows as the one that suits it best.
3. A code becomes another one only where that is nearer now.

Measured on matrices of SmolLM2 in Q4_0, relative to their squares: a search errs by 1.5e-3, this by 1.9e-5; with the
units of a search by 3.5e-5.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.packing.tiles import (
    COLUMN_BYTES,
    GROUP_BYTES,
    PAIR_BYTES,
    Blocks,
    Matrix,
    blocks_of,
    load_tile,
    nearest_code,
    part_of,
    ratio,
    transpose,
    write_int8,
    write_with_mins,
)
from quantkit_kernels.simd import (
    absolute,
    fma,
    load_f32,
    maximum,
    minimum,
    put_f64,
    round_even,
    round_up,
    splat,
    store,
    where_less,
    zeros,
)

UNITS = 16
"""Units that are tried for the scales of a row."""


def keep_codes(
    kind: str,
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    mins: NDArray[np.float32],
    data: NDArray[np.uint8],
    row_scales: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Write blocks with the codes that weights were quantized to.

    Parameters
    ----------
    kind : {"int4", "int5", "int6", "int8"}
    weights : ndarray
        f32 `[rows, columns]`, C-contiguous, finite.
    scales, mins : ndarray
        f32 `[rows, groups]`, C-contiguous, finite: a weight is `scale * code + min`, with a code of the kind. A scale
        may be negative. int8 has no mins: there a weight is `scale * code`.
    data, row_scales : ndarray
        Written, C-contiguous, of the shapes of `blocks.expected_shapes`.

    Returns
    -------
    ndarray
        f64 `[tiles]`: sums of squared errors.
    """
    rows, columns = weights.shape
    tiles, groups, block_bytes = data.shape
    kernel, given = (_int8_tiles, [scales]) if kind == "int8" else (_tiles_with_mins, [scales, mins])
    errors, scratch = np.empty(tiles), np.empty(8 * columns + 32 * groups, np.float32)
    addresses = (array.ctypes.data for array in (*given, data, row_scales, errors, scratch))
    kernel(weights.ctypes.data, rows, columns, KINDS[kind].largest_code, block_bytes, *addresses)
    return errors


@jit(entry=True)
def _tiles_with_mins(
    weights, rows, columns, largest_code, block_bytes, scales, mins, data, row_scales, errors, scratch
):
    matrix, blocks = Matrix(weights, rows, columns, largest_code), Blocks(data, row_scales, block_bytes)
    groups = (columns + 31) >> 5
    found = scratch + COLUMN_BYTES * columns
    sums = found + PAIR_BYTES * groups
    for number in range((rows + 7) >> 3):
        tile = load_tile(matrix, number, scratch)
        first, count = 32 * number * groups, min(rows - 8 * number, 8)
        # `sums` holds both, transposed, until the sums replace them.
        transpose(scales + first, count, groups, sums)
        transpose(mins + first, count, groups, sums + 32 * groups)
        _pair(sums, sums + 32 * groups, groups, found)
        put_f64(errors + 8 * number, _tile_with_mins(tile, found, sums, blocks_of(blocks, tile, number, 2)))


@jit(entry=True)
def _int8_tiles(weights, rows, columns, largest_code, block_bytes, scales, data, row_scales, errors, scratch):
    matrix, blocks = Matrix(weights, rows, columns, largest_code), Blocks(data, row_scales, block_bytes)
    groups = (columns + 31) >> 5
    found = scratch + COLUMN_BYTES * columns
    for number in range((rows + 7) >> 3):
        tile = load_tile(matrix, number, scratch)
        transpose(scales + 32 * number * groups, min(rows - 8 * number, 8), groups, found)
        put_f64(errors + 8 * number, _int8_tile(tile, found, found + 32 * groups, blocks_of(blocks, tile, number, 1)))


@jit
def _pair(scales, mins, groups, found):
    """f32 `[groups, 8]` of scales and of mins -> `[groups, 2, 8]`."""
    for group in range(groups):
        store(found + PAIR_BYTES * group, load_f32(scales + 32 * group))
        store(found + PAIR_BYTES * group + 32, load_f32(mins + 32 * group))


@jit
def _tile_with_mins(tile, found, sums, blocks):
    """Pack one tile: `found` f32 `[groups, 2, 8]` has scales and mins, `sums` is scratch of as many bytes."""
    zero = zeros(1, 1)
    largest_scale, largest_min = zero, zero
    for group in range((tile.columns + 31) >> 5):
        place = found + PAIR_BYTES * group
        scale, low = ratio(load_f32(place), tile.peak), ratio(load_f32(place + 32), tile.peak)
        # Where a scale is negative, codes count from the other end.
        low, scale = where_less(scale, zero, fma(splat(tile.largest_code), scale, low), low), absolute(scale)
        store(place, scale)
        store(place + 32, low)
        part = part_of(tile, None, group, min(tile.columns - 32 * group, 32))
        _sum_codes(part, scale, low, sums + PAIR_BYTES * group)
        largest_scale, largest_min = maximum(largest_scale, scale), maximum(largest_min, absolute(low))
    scale_unit, min_unit = _units(tile, found, sums, largest_scale, largest_min)
    for group in range((tile.columns + 31) >> 5):
        scale, low, _ = _rounded(found, sums, group, tile.columns, scale_unit, min_unit)
        store(found + PAIR_BYTES * group, scale * scale_unit)
        store(found + PAIR_BYTES * group + 32, low * min_unit)
    return write_with_mins(tile, None, found, scale_unit, min_unit, blocks)


@jit
def _sum_codes(part, scale, low, sums):
    """Write f32 `[2, 8]`: the sum of the codes of a group of 8 rows, and of their squares."""
    codes = squares = zeros(1, 1)
    inverse = ratio(splat(1.0), scale)
    for k in range(part.columns):
        code = nearest_code(load_f32(part.x + COLUMN_BYTES * k), low, inverse, part.largest_code)
        codes, squares = codes + code, fma(code, code, squares)
    store(sums, codes)
    store(sums + 32, squares)


@jit
def _units(tile, found, sums, largest_scale, largest_min):
    """Choose the units of the scales and mins of 8 rows."""
    best_unit = best_min_unit = zeros(1, 1)
    least = splat(math.inf)
    for trial in range(UNITS):
        unit, min_unit = largest_scale / splat(254.0 - 2 * trial), largest_min / splat(127.0)
        step = unit * splat((tile.largest_code + 1) // 16)
        # Where all scales are zero, nothing is to be a multiple of them.
        min_unit = where_less(zeros(1, 1), unit, step * round_up(ratio(min_unit, step)), min_unit)
        error = zeros(1, 1)
        for group in range((tile.columns + 31) >> 5):
            error = error + _rounded(found, sums, group, tile.columns, unit, min_unit)[2]
        best_unit = where_less(error, least, unit, best_unit)
        best_min_unit = where_less(error, least, min_unit, best_min_unit)
        least = minimum(error, least)
    return best_unit, best_min_unit


@jit
def _rounded(found, sums, group, columns, unit, min_unit):
    """Round the scale and the min of a group to their units; returns both, in units, and the squared error."""
    count = splat(min(columns - 32 * group, 32))
    scale, low = load_f32(found + PAIR_BYTES * group), load_f32(found + PAIR_BYTES * group + 32)
    codes, squares = load_f32(sums + PAIR_BYTES * group), load_f32(sums + PAIR_BYTES * group + 32)
    near, mean = round_even(ratio(scale, unit)), codes / count
    best_scale, best_min, least = zeros(1, 1), zeros(1, 1), splat(math.inf)
    for neighbour in range(3):
        scale_code = minimum(maximum(near + splat(neighbour - 1), zeros(1, 1)), splat(255.0))
        off = scale_code * unit - scale
        min_code = round_even(ratio(low - off * mean, min_unit))
        min_code = minimum(maximum(min_code, splat(-127.0)), splat(127.0))
        shift = min_code * min_unit - low
        error = fma(off, off * squares, shift * fma(off + off, codes, count * shift))
        best_scale = where_less(error, least, scale_code, best_scale)
        best_min = where_less(error, least, min_code, best_min)
        least = minimum(error, least)
    return best_scale, best_min, least


@jit
def _int8_tile(tile, found, squares, blocks):
    """Pack one tile: `found` f32 `[groups, 8]` has scales, `squares` is scratch of as many bytes."""
    largest = zeros(1, 1)
    for group in range((tile.columns + 31) >> 5):
        start = tile.x + GROUP_BYTES * group
        scale, total = absolute(ratio(load_f32(found + 32 * group), tile.peak)), zeros(1, 1)
        for k in range(min(tile.columns - 32 * group, 32)):
            w = load_f32(start + COLUMN_BYTES * k)
            total = fma(w, w, total)
        store(found + 32 * group, scale)
        store(squares + 32 * group, ratio(total, scale * scale))
        largest = maximum(largest, scale)
    unit = _unit(found, squares, tile.columns, largest)
    for group in range((tile.columns + 31) >> 5):
        place = found + 32 * group
        store(place, minimum(round_even(ratio(load_f32(place), unit)), splat(255.0)))
    return write_int8(tile, found, unit, blocks)


@jit
def _unit(found, squares, columns, largest):
    """Choose the unit of the scales of 8 rows; `squares` f32 `[groups, 8]` are sums of squared codes."""
    best_unit, least = zeros(1, 1), splat(math.inf)
    for trial in range(UNITS):
        unit, error = largest / splat(255.0 - trial), zeros(1, 1)
        for group in range((columns + 31) >> 5):
            scale = load_f32(found + 32 * group)
            off = round_even(ratio(scale, unit)) * unit - scale
            error = fma(off, off * load_f32(squares + 32 * group), error)
        best_unit = where_less(error, least, unit, best_unit)
        least = minimum(error, least)
    return best_unit
