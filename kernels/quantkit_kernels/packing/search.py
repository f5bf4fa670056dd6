"""The search for scales and mins: which ones lose least of weights that no source has quantized.

A lane is a row: the eight rows of a tile are searched at once, group by group. `tiles.py` rounds and writes what is
found; `quantkit.quantization.encode` chooses kinds, widens weights to f32 and shares stripes of rows between threads.

The search for kinds with mins, int4 to int6, has three steps.

1. Each group of 32 weights is fitted by itself. 21 ranges are tried, from wider than the group's own to clipping one
   tail or both. A range gives codes; least squares gives the scale and min that fit these codes best; they give better
   codes, and so on.
2. The largest scale and the largest min of a row become the units of its u8 scales and i8 mins.
3. For each group, its scale and min are rounded to these units. They and their neighbours, one unit up and down, are
   tried with the codes that suit them, and the pair with the least squared error is written.

The search for int8 has one: of the scales near the smallest that clips none of a group's weights, 8 units up and down,
the one is written whose codes err least. A clipped weight costs little where its column counts little.

A column may count more than others: the error that its weights make in a layer's output is as large as its inputs
are. Measured on SmolLM2 (mean KL divergence from fp16, linear layers packed): 0.091 where all weights count the same;
with the importance sqrt(mean square of the group) + |w| of llama.cpp's k-quants 0.105; without the neighbours 0.095;
with the mean squares of a column's inputs 0.051. All of int8, activations included: 0.0038 with the smallest scales
that clip nothing, 0.0032 by the search with those mean squares.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.packing.tiles import (
    COLUMN_BYTES,
    PAIR_BYTES,
    SCALE_BYTES,
    Blocks,
    Matrix,
    blocks_of,
    column_of,
    counted,
    load_tile,
    mass_of,
    nearest_code,
    part_of,
    ratio,
    symmetric_code,
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
    round_up,
    splat,
    store_grid,
    where_less,
    zeros,
)

WIDTHS = (1.03, 0.985, 0.93, 0.875, 0.82, 0.765, 0.71)
"""Widths of the ranges that are tried for a group with a min, relative to the group's own range."""
SHIFTS = (-0.6, 0.0, 0.6)
"""Distances of their centres from its centre, in steps of a code where the range is the group's own: relative to the
range, more codes want smaller ones (of int5, 0.02 errs 2.4 % less than the 0.04 of int4)."""
LARGEST_INT8 = KINDS["int8"].largest_code
AT_ONCE = 4
"""Groups that are searched together: the additions of one hide the latency of those of the others."""
NEIGHBOURS = 8
"""Scales of int8 that are tried on either side of the smallest that clips none of a group's weights."""
REFITS = 3
"""Times that the codes of a candidate are rounded to its fit, and fitted again."""
LEAST_IMPORTANCE = 1e-4
"""Importance of a column at least, relative to the largest of its group: one that was never used may yet be."""


def search_blocks(
    kind: str,
    weights: NDArray[np.float32],
    data: NDArray[np.uint8],
    row_scales: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Find the blocks of a kind.

    Parameters
    ----------
    kind : {"int4", "int5", "int6", "int8"}
    weights : ndarray
        f32 `[rows, columns]`, C-contiguous, finite.
    data, row_scales : ndarray
        Written, C-contiguous, of the shapes of `blocks.expected_shapes`.
    importance : ndarray, optional
        f32 `[columns]`, finite, not below 0: what the squared error of a weight in each column counts. All count the
        same by default.

    Returns
    -------
    ndarray
        f64 `[tiles]`: sums of squared errors, in which all columns count the same.
    """
    rows, columns = weights.shape
    tiles, groups, block_bytes = data.shape
    if kind == "int8":
        kernel, lanes = _int8_tiles, [_lanes(np.ones(columns, np.float32) if importance is None else importance)]
    elif importance is None:
        kernel, lanes = _tiles_with_mins, []
    else:
        kernel, lanes = _weighted_tiles_with_mins, [_lanes(importance)]
    errors, scratch = np.empty(tiles), np.empty(8 * columns + 16 * groups, np.float32)
    addresses = (array.ctypes.data for array in (*lanes, data, row_scales, errors, scratch))
    kernel(weights.ctypes.data, rows, columns, KINDS[kind].largest_code, block_bytes, *addresses)
    return errors


def _lanes(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Importances as kernels read them: `[columns, 8]`, the same in all lanes, relative to the largest of a group.

    Groups do not compete, and no sum overflows or is zero.
    """
    columns = len(importance)
    of_groups = np.zeros((-(-columns // 32), 32))
    of_groups.reshape(-1)[:columns] = importance
    largest = of_groups.max(axis=1, keepdims=True)
    relative = np.divide(of_groups, largest, out=np.ones_like(of_groups), where=largest > 0)
    lanes = np.maximum(relative, LEAST_IMPORTANCE).astype(np.float32).reshape(-1)[:columns]
    return np.repeat(lanes, COLUMN_BYTES // 4)


@jit(entry=True)
def _tiles_with_mins(weights, rows, columns, largest_code, block_bytes, data, row_scales, errors, scratch):
    """All columns count the same."""
    matrix, blocks = Matrix(weights, rows, columns, largest_code), Blocks(data, row_scales, block_bytes)
    _each_tile_with_mins(matrix, None, blocks, errors, scratch)


@jit(entry=True)
def _weighted_tiles_with_mins(
    weights, rows, columns, largest_code, block_bytes, importance, data, row_scales, errors, scratch
):
    """`importance` is f32 `[columns, 8]`, the same in all lanes."""
    matrix, blocks = Matrix(weights, rows, columns, largest_code), Blocks(data, row_scales, block_bytes)
    _each_tile_with_mins(matrix, importance, blocks, errors, scratch)


@jit
def _each_tile_with_mins(matrix, importance, blocks, errors, scratch):
    found = scratch + COLUMN_BYTES * matrix.columns
    for number in range((matrix.rows + 7) >> 3):
        tile = load_tile(matrix, number, scratch)
        put_f64(errors + 8 * number, _tile_with_mins(tile, importance, found, blocks_of(blocks, tile, number, 2)))


@jit(entry=True)
def _int8_tiles(weights, rows, columns, _, block_bytes, importance, data, row_scales, errors, scratch):
    # The largest code is a constant here: as a variable, it would cost a fifth of the time.
    matrix, blocks = Matrix(weights, rows, columns, LARGEST_INT8), Blocks(data, row_scales, block_bytes)
    found = scratch + COLUMN_BYTES * columns
    for number in range((rows + 7) >> 3):
        tile = load_tile(matrix, number, scratch)
        put_f64(errors + 8 * number, _int8_tile(tile, importance, found, blocks_of(blocks, tile, number, 1)))


@jit
def _tile_with_mins(tile, importance, found, blocks):
    """Pack one tile, with `found` as scratch of f32 `[groups, 2, 8]`; returns its squared error."""
    groups, together = (tile.columns + 31) >> 5, (tile.columns >> 5) // AT_ONCE * AT_ONCE
    for group in range(0, together, AT_ONCE):
        part = part_of(tile, importance, group, 32)
        search_groups(part, found + PAIR_BYTES * group, zeros(1, AT_ONCE))
    for group in range(together, groups):
        part = part_of(tile, importance, group, min(tile.columns - 32 * group, 32))
        search_groups(part, found + PAIR_BYTES * group, zeros(1, 1))
    largest_scale, largest_min = zeros(1, 1), zeros(1, 1)
    for group in range(groups):
        largest_scale = maximum(largest_scale, load_f32(found + PAIR_BYTES * group))
        largest_min = maximum(largest_min, absolute(load_f32(found + PAIR_BYTES * group + 32)))
    return write_with_mins(tile, importance, found, largest_scale / splat(255.0), largest_min / splat(127.0), blocks)


@jit
def search_groups(part, found, zero):
    """Find the best scale and min of some groups of 8 rows, not yet rounded: `w` is about `scale * code + min`.

    They go to `found`, f32 `[groups, 2, 8]`. `zero` has a register for each group.
    """
    low = high = column_of(part.x, 0, zero)
    total = zero
    for k in range(part.columns):
        w = column_of(part.x, k, zero)
        low, high, total = minimum(low, w), maximum(high, w), total + counted(w, part.importance, k)
    mass = mass_of(part.importance, part.columns, zero)
    mean = total / mass
    best_gain, best_scale, best_min = zero - splat(1.0), zero, mean
    middle, extent = (low + high) * splat(0.5), high - low
    for candidate in range(len(WIDTHS) * len(SHIFTS)):
        width, shift = WIDTHS[candidate // len(SHIFTS)], SHIFTS[candidate % len(SHIFTS)]
        start = middle + extent * splat(shift / part.largest_code - 0.5 * width)
        inverse = ratio(splat(part.largest_code), extent * splat(width))
        scale, least, gain = _fit(part, start, inverse, mean, mass, zero)
        for _ in range(REFITS):
            scale, least, gain = _fit(part, least, ratio(splat(1.0), scale), mean, mass, zero)
        best_scale = where_less(best_gain, gain, scale, best_scale)
        best_min = where_less(best_gain, gain, least, best_min)
        best_gain = maximum(best_gain, gain)
    store_grid(found, 0, PAIR_BYTES, best_scale)
    store_grid(found + 32, 0, PAIR_BYTES, best_min)


@jit
def _fit(part, start, inverse, mean, mass, zero):
    """Fit scale and min to the codes `(w - start) * inverse` by least squares; `mean` is that of the weights.

    Returns scale, min, and the gain: how much smaller the squared error is than that of the best constant.
    """
    codes, squares, products = zero, zero, zero
    for k in range(part.columns):
        w = column_of(part.x, k, zero)
        code = nearest_code(w, start, inverse, part.largest_code)
        share = counted(code, part.importance, k)
        codes, squares, products = codes + share, fma(share, code, squares), fma(share, w - mean, products)
    mean_code = codes / mass
    scale = maximum(ratio(products, squares - mean_code * codes), zero)
    return scale, mean - scale * mean_code, scale * products


@jit
def _int8_tile(tile, importance, found, blocks):
    """Pack one tile, with `found` as scratch of f32 `[groups, 8]`; returns its squared error."""
    # One part in a million above 1 / 127, so that rounding does not clip the largest weight of a row.
    step = splat((1.0 + 1e-6) / (127.0 * 255.0))
    groups, together = (tile.columns + 31) >> 5, (tile.columns >> 5) // AT_ONCE * AT_ONCE
    for group in range(0, together, AT_ONCE):
        part = part_of(tile, importance, group, 32)
        _search_int8_groups(part, step, found + SCALE_BYTES * group, zeros(1, AT_ONCE))
    for group in range(together, groups):
        part = part_of(tile, importance, group, min(tile.columns - 32 * group, 32))
        _search_int8_groups(part, step, found + SCALE_BYTES * group, zeros(1, 1))
    return write_int8(tile, found, step, blocks)


@jit
def _search_int8_groups(part, step, found, zero):
    """Find the best u8 scales of some groups of 8 rows, in units of `step`, near the smallest that clip no weight.

    They go to `found`, f32 `[groups, 8]`. `zero` has a register for each group.
    """
    largest = zero
    for k in range(part.columns):
        largest = maximum(largest, absolute(column_of(part.x, k, zero)))
    unclipped = minimum(round_up(largest / (step * splat(part.largest_code))), splat(255.0))
    best_scale, least = unclipped, zero + splat(math.inf)
    for candidate in range(2 * NEIGHBOURS + 1):
        scale = minimum(maximum(unclipped + splat(candidate - NEIGHBOURS), zero), splat(255.0))
        stored, errors = scale * step, zero
        inverse = ratio(splat(1.0), stored)
        for k in range(part.columns):
            w = column_of(part.x, k, zero)
            error = stored * symmetric_code(w, inverse, part.largest_code) - w
            errors = fma(counted(error, part.importance, k), error, errors)
        best_scale = where_less(errors, least, scale, best_scale)
        least = minimum(errors, least)
    store_grid(found, 0, SCALE_BYTES, best_scale)
