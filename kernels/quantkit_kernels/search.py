"""The kernels of packing: the search for scales, mins and codes.

A lane is a row: the eight rows of a tile are searched at once, group by group. `blocks.py` specifies what is written;
`quantkit.quantization.encode` chooses kinds, widens weights to f32 and shares row tiles between threads.

The search for int4 has three steps.

1. Each group of 32 weights is fitted by itself. 21 ranges are tried, from wider than the group's own to clipping one
   tail or both. A range gives codes; least squares gives the scale and min that fit these codes best; they give better
   codes, and so on.
2. The largest scale and the largest min of a row become the units of its u8 scales and i8 mins.
3. For each group, its scale and min are rounded to these units. They and their neighbours, one unit up and down, are
   tried with the codes that suit them, and the pair with the least squared error is written.

All weights have the same importance. Measured on SmolLM2 (mean KL divergence from fp16, linear layers packed): 0.091;
with the importance sqrt(mean square of the group) + |w| of llama.cpp's k-quants 0.105; without the neighbours 0.095.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    absolute,
    fma,
    get_f32,
    load_f32,
    maximum,
    minimum,
    put_f32,
    round_even,
    round_up,
    splat,
    splat_i32,
    store,
    store_bytes,
    to_i32,
    where_less,
    zeros,
)

WIDTHS = (1.03, 0.985, 0.93, 0.875, 0.82, 0.765, 0.71)
"""Widths of the ranges that are tried for a group of int4, relative to the group's own range."""
SHIFTS = (-0.04, 0.0, 0.04)
"""Distances of their centres from its centre, relative to the same range."""
REFITS = 3
"""Times that the codes of a candidate are rounded to its fit, and fitted again."""
COLUMN_BYTES = 32
"""Bytes of one column of a tile: 8 rows of f32."""
INT4_BLOCK, INT8_BLOCK = KINDS["int4"].block_bytes, KINDS["int8"].block_bytes


def quantize_int4(
    weights: NDArray[np.float32], data: NDArray[np.uint8], row_scales: NDArray[np.float32], first: int, last: int
) -> float:
    """Find the int4 blocks of row tiles `first` to `last`.

    Parameters
    ----------
    weights : ndarray
        f32 `[rows, columns]`, C-contiguous, finite.
    data, row_scales : ndarray
        uint8 `[tiles, groups, 144]` and f32 `[tiles, 2, 8]`. Only these tiles are written, so threads may share them.

    Returns
    -------
    float
        Sum of squared errors of these rows.
    """
    return _pack(_int4_tiles, weights, data, row_scales, first, last)


def quantize_int8(
    weights: NDArray[np.float32], data: NDArray[np.uint8], row_scales: NDArray[np.float32], first: int, last: int
) -> float:
    """As `quantize_int4`, for int8: data `[tiles, groups, 264]`, row scales `[tiles, 1, 8]`."""
    return _pack(_int8_tiles, weights, data, row_scales, first, last)


def _pack(kernel, weights, data, row_scales, first, last):
    rows, columns = weights.shape
    groups = data.shape[1]
    scratch = np.empty(8 * columns + 16 * groups, np.float32)
    return kernel(
        weights.ctypes.data, rows, columns, first, last, data.ctypes.data, row_scales.ctypes.data, scratch.ctypes.data
    )


@jit(entry=True)
def _int4_tiles(weights, rows, columns, first, last, data, row_scales, scratch):
    groups = (columns + 31) >> 5
    found = scratch + COLUMN_BYTES * columns
    error = 0.0
    for tile in range(first, last):
        _transpose(weights + 32 * tile * columns, min(rows - 8 * tile, 8), columns, scratch)
        error += _int4_tile(scratch, columns, found, data + INT4_BLOCK * groups * tile, row_scales + 64 * tile)
    return error


@jit(entry=True)
def _int8_tiles(weights, rows, columns, first, last, data, row_scales, scratch):
    groups = (columns + 31) >> 5
    found = scratch + COLUMN_BYTES * columns
    error = 0.0
    for tile in range(first, last):
        _transpose(weights + 32 * tile * columns, min(rows - 8 * tile, 8), columns, scratch)
        error += _int8_tile(scratch, columns, data + INT8_BLOCK * groups * tile, row_scales + 32 * tile, found)
    return error


@jit
def _transpose(source, rows, columns, target):
    """f32 `[rows <= 8, columns]` -> `[columns, 8]`; missing rows are zero."""
    for column in range(columns):
        for row in range(8):
            place = source + 4 * (row * columns + column)
            put_f32(target + COLUMN_BYTES * column + 4 * row, get_f32(place) if row < rows else 0.0)


@jit
def _normalize(x, columns):
    """Divide each row of a tile by its largest magnitude, so that no square overflows; returns the magnitudes."""
    peak = zeros(1, 1)
    for column in range(columns):
        peak = maximum(peak, absolute(load_f32(x + COLUMN_BYTES * column)))
    for column in range(columns):
        place = x + COLUMN_BYTES * column
        store(place, _ratio(load_f32(place), peak))
    return peak


@jit
def _total_error(errors, peak, scratch):
    """Sum of the squared errors of a tile's rows, in f64; `errors` are relative to `peak` squared."""
    store(scratch, errors)
    store(scratch + 32, peak)
    total = 0.0
    for row in range(8):
        unit = np.float64(get_f32(scratch + 32 + 4 * row))
        total += get_f32(scratch + 4 * row) * unit * unit
    return total


@jit
def _int4_tile(x, columns, found, data, row_scales):
    """Pack one tile: `x` f32 `[columns, 8]`, `found` scratch of f32 `[groups, 2, 8]`; returns its squared error."""
    groups = (columns + 31) >> 5
    peak = _normalize(x, columns)
    largest_scale, largest_min = zeros(1, 1), zeros(1, 1)
    for group in range(groups):
        scale, low = _search(x + 32 * COLUMN_BYTES * group, min(columns - 32 * group, 32))
        store(found + 64 * group, scale)
        store(found + 64 * group + 32, low)
        largest_scale = maximum(largest_scale, scale)
        largest_min = maximum(largest_min, absolute(low))
    scale_unit, min_unit = largest_scale / splat(255.0), largest_min / splat(127.0)
    store(row_scales, scale_unit * peak)
    store(row_scales + 32, min_unit * peak)
    errors = zeros(1, 1)
    for group in range(groups):
        count = min(columns - 32 * group, 32)
        place, start = found + 64 * group, x + 32 * COLUMN_BYTES * group
        found_scale, found_min = load_f32(place), load_f32(place + 32)
        errors = errors + _write_int4(start, count, found_scale, found_min, scale_unit, min_unit, data)
        data += INT4_BLOCK
    return _total_error(errors, peak, found)


@jit
def _search(x, count):
    """The best scale and min of one group of 8 rows, not yet rounded: `w` is about `scale * code + min`."""
    zero = zeros(1, 1)
    low = high = load_f32(x)
    total = zero
    for k in range(count):
        w = load_f32(x + COLUMN_BYTES * k)
        low, high, total = minimum(low, w), maximum(high, w), total + w
    mean = total / splat(count)
    best_gain, best_scale, best_min = splat(-1.0), zero, mean
    middle, extent = (low + high) * splat(0.5), high - low
    for candidate in range(len(WIDTHS) * len(SHIFTS)):
        width, shift = WIDTHS[candidate // len(SHIFTS)], SHIFTS[candidate % len(SHIFTS)]
        start = middle + extent * splat(shift - 0.5 * width)
        inverse = _ratio(splat(15.0), extent * splat(width))
        scale, least, gain = _fit(x, count, start, inverse, mean)
        for _ in range(REFITS):
            scale, least, gain = _fit(x, count, least, _ratio(splat(1.0), scale), mean)
        best_scale = where_less(best_gain, gain, scale, best_scale)
        best_min = where_less(best_gain, gain, least, best_min)
        best_gain = maximum(best_gain, gain)
    return best_scale, best_min


@jit
def _fit(x, count, start, inverse, mean):
    """Fit scale and min to the codes `(w - start) * inverse` by least squares; `mean` is that of the weights.

    Returns scale, min, and the gain: how much smaller the squared error is than that of the best constant.
    """
    zero, top = zeros(1, 1), splat(15.0)
    codes, squares, products = zero, zero, zero
    for k in range(count):
        w = load_f32(x + COLUMN_BYTES * k)
        code = minimum(maximum(round_even((w - start) * inverse), zero), top)
        codes, squares, products = codes + code, fma(code, code, squares), fma(code, w - mean, products)
    mean_code = codes / splat(count)
    scale = maximum(_ratio(products, squares - mean_code * codes), zero)
    return scale, mean - scale * mean_code, scale * products


@jit
def _ratio(a, b):
    """`a / b`, and 0 where `b` is not above 0."""
    zero = zeros(1, 1)
    return where_less(zero, b, a / b, zero)


@jit
def _round_to(w, offset, inverse):
    """The code of a weight, for a stored min and the inverse of a stored scale."""
    return minimum(maximum(round_even((w - offset) * inverse), zeros(1, 1)), splat(15.0))


@jit
def _write_int4(x, count, scale, low, scale_unit, min_unit, data):
    """Round a group's scale and min to their units, find codes, and pack; returns the squared errors of the 8 rows."""
    zero = zeros(1, 1)
    near_scale, near_min = round_even(_ratio(scale, scale_unit)), round_even(_ratio(low, min_unit))
    best_scale, best_min, least = zero, zero, splat(math.inf)
    for neighbour in range(9):
        scale_code = minimum(maximum(near_scale + splat(neighbour // 3 - 1), zero), splat(255.0))
        min_code = minimum(maximum(near_min + splat(neighbour % 3 - 1), splat(-127.0)), splat(127.0))
        stored, offset = scale_code * scale_unit, min_code * min_unit
        inverse = _ratio(splat(1.0), stored)
        errors = zero
        for k in range(count):
            w = load_f32(x + COLUMN_BYTES * k)
            error = fma(stored, _round_to(w, offset, inverse), offset) - w
            errors = fma(error, error, errors)
        best_scale = where_less(errors, least, scale_code, best_scale)
        best_min = where_less(errors, least, min_code, best_min)
        least = minimum(errors, least)
    offset, inverse = best_min * min_unit, _ratio(splat(1.0), best_scale * scale_unit)
    for chunk in range(4):
        packed = to_i32(zero)
        for byte in range(4):
            nibbles = to_i32(zero)
            for half in range(2):
                k = 8 * chunk + 4 * half + byte
                if k < count:
                    code = _round_to(load_f32(x + COLUMN_BYTES * k), offset, inverse)
                    nibbles = nibbles + to_i32(code) * splat_i32(1 << 4 * half)
            packed = packed + nibbles * splat_i32(1 << 8 * byte)
        store(data + 32 * chunk, packed)
    store_bytes(data + 128, 4, to_i32(best_scale))
    store_bytes(data + 136, 4, to_i32(best_min))
    return least


@jit
def _int8_tile(x, columns, data, row_scales, scratch):
    """Pack one tile: `x` f32 `[columns, 8]`; returns its squared error."""
    zero, top = zeros(1, 1), splat(127.0)
    peak = _normalize(x, columns)
    # One part in a million above 1 / 127, so that rounding does not clip the largest weight.
    step = splat((1.0 + 1e-6) / (127.0 * 255.0))
    store(row_scales, step * peak)
    errors = zero
    for group in range((columns + 31) >> 5):
        start = x + 32 * COLUMN_BYTES * group
        count = min(columns - 32 * group, 32)
        largest = zero
        for k in range(count):
            largest = maximum(largest, absolute(load_f32(start + COLUMN_BYTES * k)))
        scale_code = minimum(round_up(largest / (step * top)), splat(255.0))
        stored = scale_code * step
        inverse = _ratio(splat(1.0), stored)
        for chunk in range(8):
            packed = to_i32(zero)
            for byte in range(4):
                k = 4 * chunk + byte
                if k < count:
                    w = load_f32(start + COLUMN_BYTES * k)
                    code = minimum(maximum(round_even(w * inverse), splat(-127.0)), top)
                    error = stored * code - w
                    errors = fma(error, error, errors)
                    packed = packed + (to_i32(code) & splat_i32(255)) * splat_i32(1 << 8 * byte)
            store(data + 32 * chunk, packed)
        store_bytes(data + 256, 4, to_i32(scale_code))
        data += INT8_BLOCK
    return _total_error(errors, peak, scratch)
