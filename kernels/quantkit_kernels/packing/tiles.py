"""A tile of eight rows on its way into blocks: turned so that a lane is a row, scaled to 1, rounded and written.

`search.py` and `kept.py` find scales and mins, each in its own way; from there on their ways are one. `blocks.py`
specifies what is written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    absolute,
    fma,
    get_f32,
    load_f32,
    load_grid,
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

COLUMN_BYTES = 32
"""Bytes of one column of a tile: 8 rows of f32."""
GROUP_BYTES = 32 * COLUMN_BYTES
PAIR_BYTES = 64
"""Bytes of what is found for one group with a min: f32 `[2, 8]`, scales and mins."""
SCALE_BYTES = 32
"""The same of int8: f32 `[8]`, scales."""


class Matrix(NamedTuple):
    """What is packed, f32 `[rows, columns]`, and the largest code of its kind."""

    weights: int
    rows: int
    columns: int
    largest_code: int


class Tile(NamedTuple):
    """The weights of eight rows, relative to the largest magnitude of each."""

    x: int
    """f32 `[columns, 8]`"""
    columns: int
    peak: object
    """The magnitudes."""
    largest_code: int
    """Of the kind that it becomes."""


class Part(NamedTuple):
    """Columns of a group of a tile, or of some groups that follow each other."""

    x: int
    """f32 `[columns, 8]`"""
    columns: int
    """Of a group."""
    importance: int | None
    """f32 `[columns, 8]`: what a squared error in each column counts, the same in all lanes; None: all count 1."""
    largest_code: int
    """As of `Tile`."""


class Blocks(NamedTuple):
    """Where a matrix or a tile is written."""

    data: int
    row_scales: int
    block_bytes: int


@jit
def load_tile(matrix, tile, target):
    """Turn one tile of a matrix at `target`, f32 `[columns, 8]`, and divide each row by its largest magnitude.

    Then no square overflows.
    """
    columns = matrix.columns
    transpose(matrix.weights + 32 * tile * columns, min(matrix.rows - 8 * tile, 8), columns, target)
    peak = zeros(1, 1)
    for column in range(columns):
        peak = maximum(peak, absolute(load_f32(target + COLUMN_BYTES * column)))
    for column in range(columns):
        place = target + COLUMN_BYTES * column
        store(place, ratio(load_f32(place), peak))
    return Tile(target, columns, peak, matrix.largest_code)


@jit
def blocks_of(blocks, tile, number, scales):
    """Where a tile of a matrix is written; a row has so many `scales`."""
    data = blocks.data + blocks.block_bytes * ((tile.columns + 31) >> 5) * number
    return Blocks(data, blocks.row_scales + 32 * scales * number, blocks.block_bytes)


@jit
def transpose(source, rows, columns, target):
    """f32 `[rows <= 8, columns]` -> `[columns, 8]`; missing rows are zero."""
    for column in range(columns):
        for row in range(8):
            place = source + 4 * (row * columns + column)
            put_f32(target + COLUMN_BYTES * column + 4 * row, get_f32(place) if row < rows else 0.0)


@jit
def ratio(a, b):
    """`a / b`, and 0 where `b` is not above 0."""
    zero = zeros(1, 1)
    return where_less(zero, b, a / b, zero)


@jit
def nearest_code(w, offset, inverse, largest_code):
    """The code of a weight, for a min and the inverse of a scale."""
    return minimum(maximum(round_even((w - offset) * inverse), zeros(1, 1)), splat(largest_code))


@jit
def symmetric_code(w, inverse, largest_code):
    """The code of a weight, for the inverse of a scale and no min."""
    return minimum(maximum(round_even(w * inverse), splat(-largest_code)), splat(largest_code))


@jit
def part_of(tile, importance, group, columns):
    """The part of a tile that begins with a group; `importance` is that of the whole tile."""
    start = GROUP_BYTES * group
    return Part(tile.x + start, columns, _behind(importance, start), tile.largest_code)


@jit
def _behind(address, nbytes):
    if address is None:
        return None
    return address + nbytes


@jit
def column_of(x, k, like):
    """Column `k` of as many groups as `like` has registers."""
    return load_grid(x + COLUMN_BYTES * k, 0, GROUP_BYTES, like)


@jit
def counted(x, importance, k):
    """`x`, which column `k` adds to a sum, times the importance of the column."""
    if importance is None:
        return x
    return x * column_of(importance, k, x)


@jit
def mass_of(importance, columns, zero):
    """Sum of the importances of a group's columns, for as many groups as `zero` has registers."""
    if importance is None:
        return zero + splat(columns)
    mass = zero
    for k in range(columns):
        mass = mass + column_of(importance, k, zero)
    return mass


@jit
def write_with_mins(tile, importance, found, scale_unit, min_unit, blocks):
    """Round the scales and mins of a tile, at `found` f32 `[groups, 2, 8]`, find codes, and pack.

    Returns the squared error of the tile, f64; what was found is no longer there.
    """
    store(blocks.row_scales, scale_unit * tile.peak)
    store(blocks.row_scales + 32, min_unit * tile.peak)
    errors = zeros(1, 1)
    for group in range((tile.columns + 31) >> 5):
        place, part = found + PAIR_BYTES * group, part_of(tile, importance, group, min(tile.columns - 32 * group, 32))
        found_scale, found_min = load_f32(place), load_f32(place + 32)
        start, end = blocks.data + blocks.block_bytes * group, blocks.data + blocks.block_bytes * (group + 1)
        best_scale, best_min, error = _best_bytes(part, found_scale, found_min, scale_unit, min_unit)
        stored, offset = best_scale * scale_unit, best_min * min_unit
        _write_codes(part, stored, offset, start)
        store_bytes(end - 16, 4, to_i32(best_scale))
        store_bytes(end - 8, 4, to_i32(best_min))
        errors = errors + _plain(error, part, part.importance, stored, offset)
    return _total_error(errors, tile.peak, found)


@jit
def _best_bytes(part, scale, low, scale_unit, min_unit):
    """Round a group's scale and min to their units; returns both, in units, and the squared errors of the 8 rows."""
    zero = zeros(1, 1)
    near_scale, near_min = round_even(ratio(scale, scale_unit)), round_even(ratio(low, min_unit))
    best_scale, best_min, least = zero, zero, splat(math.inf)
    for neighbour in range(9):
        scale_code = minimum(maximum(near_scale + splat(neighbour // 3 - 1), zero), splat(255.0))
        min_code = minimum(maximum(near_min + splat(neighbour % 3 - 1), splat(-127.0)), splat(127.0))
        stored, offset = scale_code * scale_unit, min_code * min_unit
        errors = _errors(part, part.importance, stored, offset)
        best_scale = where_less(errors, least, scale_code, best_scale)
        best_min = where_less(errors, least, min_code, best_min)
        least = minimum(errors, least)
    return best_scale, best_min, least


@jit
def _write_codes(part, stored, offset, data):
    """Write the low four bits of a group's codes, and behind them the planes of those above, if the kind has any."""
    zero, inverse = zeros(1, 1), ratio(splat(1.0), stored)
    high_bits, plane = (part.largest_code + 1) >> 5, to_i32(zero)
    for chunk in range(4):
        packed = to_i32(zero)
        for byte in range(4):
            for half in range(2):
                k = 8 * chunk + 4 * half + byte
                if k < part.columns:
                    code = nearest_code(load_f32(part.x + COLUMN_BYTES * k), offset, inverse, part.largest_code)
                    high = round_up((code - splat(15.0)) * splat(1 / 16))
                    packed = packed + to_i32(code - high * splat(16.0)) * splat_i32(1 << 8 * byte + 4 * half)
                    plane = plane + to_i32(high) * splat_i32(1 << 8 * byte + high_bits * (2 * chunk + half) % 8)
        store(data + 32 * chunk, packed)
        planes = high_bits * (chunk + 1) >> 2
        if planes > high_bits * chunk >> 2:
            store(data + 96 + 32 * planes, plane)
            plane = to_i32(zero)


@jit
def _plain(errors, part, importance, stored, offset):
    """The squared errors in which all columns count the same; `errors` are those that `importance` makes of them."""
    if importance is None:
        return errors
    return _errors(part, None, stored, offset)


@jit
def _errors(part, importance, stored, offset):
    """Sums of the squared errors of 8 rows, for a scale and min and the codes that suit them."""
    errors, inverse = zeros(1, 1), ratio(splat(1.0), stored)
    for k in range(part.columns):
        w = load_f32(part.x + COLUMN_BYTES * k)
        error = fma(stored, nearest_code(w, offset, inverse, part.largest_code), offset) - w
        errors = fma(counted(error, importance, k), error, errors)
    return errors


@jit
def write_int8(tile, found, step, blocks):
    """Find the codes of a tile, for the u8 scales at `found` f32 `[groups, 8]` and their unit `step`, and pack.

    Returns the squared error of the tile, f64. `found` has 64 bytes at least; what was found is no longer there.
    """
    store(blocks.row_scales, step * tile.peak)
    errors = zeros(1, 1)
    for group in range((tile.columns + 31) >> 5):
        start = tile.x + GROUP_BYTES * group
        count = min(tile.columns - 32 * group, 32)
        data = blocks.data + blocks.block_bytes * group
        scale_code = load_f32(found + SCALE_BYTES * group)
        stored = scale_code * step
        inverse = ratio(splat(1.0), stored)
        for chunk in range(8):
            packed = to_i32(zeros(1, 1))
            for byte in range(4):
                k = 4 * chunk + byte
                if k < count:
                    w = load_f32(start + COLUMN_BYTES * k)
                    code = symmetric_code(w, inverse, tile.largest_code)
                    error = stored * code - w
                    errors = fma(error, error, errors)
                    packed = packed + (to_i32(code) & splat_i32(255)) * splat_i32(1 << 8 * byte)
            store(data + 32 * chunk, packed)
        store_bytes(data + 256, 4, to_i32(scale_code))
    return _total_error(errors, tile.peak, found)


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
