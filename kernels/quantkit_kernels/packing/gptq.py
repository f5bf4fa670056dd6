"""Packing under a Hessian: int4 to int6 codes whose error in a layer's *output* is small, for known inputs.

With `H = X^T X` of a layer's inputs X, the error `d = w - q` of a row of weights costs `d H d^T`. `search.py` takes H
for the identity; here the error of one column makes up for those of others. A lane is a row, as there, and a panel of
four tiles is packed at once, a register for each: the latency of one hides behind the work of the others.
`quantkit.quantization.calibration` collects H.

A panel is rounded column after column (GPTQ: Frantar et al., 2023). With `H = L^T L`, L lower triangular, the cost
is the sum over j of the squares of `(d L^T)[j]`, in which only errors up to column j count: so a code is the nearest to
the weight and what the errors before it ask for. The scale and min of a group are found when it is reached, for the
weights as they should be by then: of some bytes as they will be stored, those whose codes cost least. Columns whose
errors cost most come first (`order_of`), since those behind them make up for it: 1 to 7 % less cost.

Which codes come out depends on luck: with another unit of the scales they differ, and so does a row's cost, by several
percent. So each row is rounded with several units and keeps what cost least.

Then descents improve it, group after group: scale and min move together, and code after code, to where the cost is
least while all else stays. A move that does not lower the cost is not made.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.blocks import COLUMNS, KINDS, ROWS, pack
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.packing.search import search_groups
from quantkit_kernels.packing.tiles import COLUMN_BYTES, GROUP_BYTES, PAIR_BYTES, Part, column_of, ratio
from quantkit_kernels.simd import (
    TOKENS,
    fma,
    fma_outer,
    get_f32,
    load_f32,
    load_grid,
    load_rows_f32,
    maximum,
    minimum,
    put_f32,
    round_even,
    splat,
    stack_f32,
    store_grid,
    sum_lanes,
    where_less,
    zeros,
)

PANEL_TILES = 4
PANEL_ROWS = 8 * PANEL_TILES
COLUMN = 4 * PANEL_ROWS
"""Bytes of a column of a panel, f32."""
GROUP = COLUMNS
AT_ONCE = TOKENS // 2
"""Rows of a matrix that a panel is multiplied by at once: with its tiles, a grid for half of the registers."""
MARGINS = tuple(1.09 + 0.01 * i for i in range(16))
"""How much larger than those of the weights by themselves the units of scales and mins are, which are tried: what a
group has to stand for moves with the errors before it. Of so many, the best has 3 to 6 % less cost than one."""
LEAST_UNIT = 1e-30
"""Of a row of zeros."""
DESCENTS = 4
"""Each lowers the cost that rounding left, by 10 % of it, 3, 1.2 and 0.6: more of them gain no more."""
TURNS = 2
"""Times that a descent moves scale and min of a group, and its codes, before it goes on to the next."""


class Panel(NamedTuple):
    """32 rows of a matrix, as addresses of f32; columns are padded to whole groups.

    Attributes
    ----------
    errors : int
        `[columns, 32]`: the weights at first, then how much more they are than the codes stand for.
    codes : int
        `[columns, 32]`, from 0 to `largest_code`.
    scales, mins : int
        `[groups, 32]`: the bytes as they are stored, 1..255 and -127..127.
    scale_units, min_units : int
        `[32]`: what one of these is worth, above 0.
    costs : int
        `[32]`: what rounding cost.
    columns : int
    largest_code : int
        Of the kind.
    """

    errors: int
    codes: int
    scales: int
    mins: int
    scale_units: int
    min_units: int
    costs: int
    columns: int
    largest_code: int


class Group(NamedTuple):
    """A group of a panel's columns, as addresses in the panel, and its corner of a matrix, rows of `row_bytes`."""

    errors: int
    codes: int
    scale: int
    min: int
    scale_unit: int
    min_unit: int
    cost: int
    largest_code: int
    corner: int
    row_bytes: int


def order_of(hessian: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the order to round columns in: whole groups and the columns of each, by their diagonals, largest first."""
    diagonal = np.diagonal(hessian).reshape(-1, GROUP)
    groups = np.argsort(-diagonal.mean(axis=1), kind="stable")
    columns = np.argsort(-diagonal, axis=1, kind="stable") + GROUP * np.arange(len(diagonal))[:, None]
    return columns[groups].ravel()


def pack_panel(
    kind: str,
    weights: NDArray[np.float32],
    hessian: NDArray[np.float32],
    lower: NDArray[np.float32],
    order: NDArray[np.int64],
    data: NDArray[np.uint8],
    row_scales: NDArray[np.float32],
) -> tuple[float, float]:
    """Find the blocks of a panel.

    Parameters
    ----------
    kind : {"int4", "int5", "int6"}
    weights : ndarray
        f32 `[rows, columns]`, up to 32 rows, finite.
    hessian, lower : ndarray
        H, positive definite, and L: f32 `[size, size]`, C-contiguous, where `size` is the columns of whole groups.
        Their columns are in another order than those of the weights.
    order : ndarray
        int64 `[size]`: which column of the weights each of theirs is, as `order_of` returns it.
    data : ndarray
        Written: uint8 `[tiles, groups, block_bytes]`.
    row_scales : ndarray
        f32 `[tiles, 2, 8]`: those that `search_blocks` found; they are replaced.

    Returns
    -------
    float, float
        The cost of the errors, and what it would be if all weights were lost.
    """
    rows, columns = weights.shape
    size = len(hessian)
    wanted = np.zeros((size, PANEL_ROWS), np.float32)
    wanted[:columns, :rows] = weights.T
    wanted = wanted[order]
    units = np.zeros((2, PANEL_ROWS), np.float32)
    units[:, : ROWS * len(row_scales)] = row_scales.transpose(1, 0, 2).reshape(2, -1)
    found = _rounded(kind, wanted, units, lower.ctypes.data)
    panel = _panel(kind, found)
    for _ in range(DESCENTS):
        descend_panel(panel, hessian.ctypes.data)
    _, codes, *scales, scale_units, min_units, _ = _parts(found)
    places = np.argsort(order)
    in_place = (codes[places[:columns]], *(array[places[::GROUP] // GROUP] for array in scales))
    stored = (array.T[:rows].astype(dtype) for array, dtype in zip(in_place, _STORED, strict=True))
    data[...] = pack(kind, *stored)
    units = np.concatenate([scale_units, min_units])
    row_scales[...] = units.reshape(2, PANEL_TILES, ROWS).transpose(1, 0, 2)[: len(row_scales)]
    cost = cost_of_panel(panel, hessian.ctypes.data)
    _parts(found)[0][...] = wanted
    return cost, cost_of_panel(panel, hessian.ctypes.data)


_STORED = (np.uint8, np.uint8, np.int8)
"""Types of codes, scales and mins."""


def _rounded(kind: str, wanted: NDArray[np.float32], units: NDArray[np.float32], lower: int) -> NDArray[np.float32]:
    """Round a panel with the units of each margin -> the state of each row with the margin that cost it least."""
    size = len(wanted)
    best, state = np.empty((2, 2 * size + 2 * (size // GROUP) + 3, PANEL_ROWS), np.float32)
    panel = _panel(kind, state)
    errors, *_, scale_units, min_units, costs = _parts(state)
    for number, margin in enumerate(MARGINS):
        errors[...], costs[...] = wanted, 0
        scale_units[0], min_units[0] = np.maximum(units * np.float32(margin), np.float32(LEAST_UNIT))
        round_panel(panel, lower)
        np.copyto(best, state, where=costs < best[-1] if number else True)
    return best


def _parts(state: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Errors, codes, scales, mins, units of both, and costs: the rows of a panel's state, f32 `[rows, 32]`."""
    size = (len(state) - 3) * GROUP // (2 * GROUP + 2)
    groups = size // GROUP
    return np.split(state, np.cumsum([size, size, groups, groups, 1, 1]))


def _panel(kind: str, state: NDArray[np.float32]) -> Panel:
    parts = _parts(state)
    return Panel(*(part.ctypes.data for part in parts), len(parts[0]), KINDS[kind].largest_code)


@jit(entry=True)
def cost_of_panel(panel, hessian):
    """The cost of the errors of a panel."""
    row_bytes, slope, total = 4 * panel.columns, stack_f32(1024), 0.0
    for first in range(0, panel.columns, GROUP):
        _products(hessian + row_bytes * first, row_bytes, panel.errors, panel.columns, slope)
        for place in range(0, COLUMN * GROUP, 32):
            errors = load_f32(panel.errors + COLUMN * first + place)
            total += sum_lanes(errors * load_f32(slope + place))
    return total


@jit(entry=True)
def round_panel(panel, lower):
    """Find scales, mins and codes of a panel; `lower` is L, f32 `[columns, columns]`."""
    row_bytes, pull, corner = 4 * panel.columns, stack_f32(1024), stack_f32(1024)
    for first in range(0, panel.columns, GROUP):
        rows = lower + row_bytes * first
        _products(rows, row_bytes, panel.errors, first, pull)
        for i in range(GROUP):
            for j in range(GROUP):
                put_f32(corner + 4 * (GROUP * i + j), get_f32(rows + row_bytes * j + 4 * (first + i)))
        _round_group(_group(panel, first, corner, 4 * GROUP), pull)


@jit(entry=True)
def descend_panel(panel, hessian):
    """Lower the cost of a panel by moving scales, mins and codes; `hessian` is H, f32 `[columns, columns]`."""
    row_bytes, slope = 4 * panel.columns, stack_f32(1024)
    for first in range(0, panel.columns, GROUP):
        rows = hessian + row_bytes * first
        _products(rows, row_bytes, panel.errors, panel.columns, slope)
        _descend_group(_group(panel, first, rows + 4 * first, row_bytes), slope)


@jit
def _group(panel, first, corner, row_bytes):
    column, number = COLUMN * first, COLUMN * (first // GROUP)
    return Group(
        panel.errors + column,
        panel.codes + column,
        panel.scales + number,
        panel.mins + number,
        panel.scale_units,
        panel.min_units,
        panel.costs,
        panel.largest_code,
        corner,
        row_bytes,
    )


@jit
def _load(column):
    """A column of the panel: a register for each tile."""
    return load_grid(column, 0, 32, zeros(1, PANEL_TILES))


@jit
def _store(column, x):
    store_grid(column, 0, 32, x)


@jit
def _products(rows, row_bytes, errors, count, out):
    """`out[j] = sum over k < count of rows[j, k] errors[k]`, for 32 rows -> f32 `[32, 32]`."""
    for j in range(0, GROUP, AT_ONCE):
        total = zeros(PANEL_TILES, AT_ONCE)
        for k in range(count):
            total = fma_outer(load_rows_f32(errors + COLUMN * k, 32, total), rows + 4 * k, row_bytes, total)
        store_grid(out + COLUMN * j, 32, COLUMN, total)
        rows += AT_ONCE * row_bytes


@jit
def _add(d, row, first, target):
    """`target[j] += d row[j]`, for the columns of a group from `first` on."""
    for j in range(first, GROUP):
        place = target + COLUMN * j
        _store(place, fma(d, splat(get_f32(row + 4 * j)), _load(place)))


@jit
def _row(group, j):
    """Address of a row of the corner."""
    return group.corner + group.row_bytes * j


@jit
def _diagonal(group, j):
    return get_f32(group.corner + (group.row_bytes + 4) * j)


@jit
def _clamp(x, low, high):
    return minimum(maximum(x, splat(low)), splat(high))


@jit
def _round_group(group, pull):
    """Round one group; its `errors` are still its weights, and `pull` is what the errors before it ask for."""
    zero = zeros(1, PANEL_TILES)
    # The weights as they should be by now: with them as codes, nothing would be left to pay.
    targets, importance, found = stack_f32(1024), stack_f32(1024), stack_f32(64)
    for j in range(GROUP):
        diagonal = _diagonal(group, j)
        error = _load(pull + COLUMN * j) * splat(-1.0 / diagonal)
        store_grid(targets + COLUMN_BYTES * j, 0, GROUP_BYTES, _load(group.errors + COLUMN * j) - error)
        store_grid(importance + COLUMN_BYTES * j, 0, GROUP_BYTES, zero + splat(diagonal * diagonal))
        _add(error, _row(group, j), j + 1, pull)
    search_groups(Part(targets, GROUP, importance, group.largest_code), found, zero)
    scale_unit, min_unit = _load(group.scale_unit), _load(group.min_unit)
    near_scale = round_even(load_grid(found, 0, PAIR_BYTES, zero) / scale_unit)
    near_min = round_even(load_grid(found + 32, 0, PAIR_BYTES, zero) / min_unit)
    best_scale, best_min, least = zero, zero, zero + splat(math.inf)
    for neighbour in range(9):
        scale_byte = _clamp(near_scale + splat(neighbour // 3 - 1), 1.0, 255.0)
        min_byte = _clamp(near_min + splat(neighbour % 3 - 1), -127.0, 127.0)
        cost = _round_columns(group, targets, scale_byte * scale_unit, min_byte * min_unit)
        best_scale = where_less(cost, least, scale_byte, best_scale)
        best_min = where_less(cost, least, min_byte, best_min)
        least = minimum(cost, least)
    stored, offset = best_scale * scale_unit, best_min * min_unit
    _round_columns(group, targets, stored, offset)
    _store(group.cost, _load(group.cost) + least)
    _store(group.scale, best_scale)
    _store(group.min, best_min)
    for j in range(GROUP):
        place = group.errors + COLUMN * j
        _store(place, _load(place) - fma(_load(group.codes + COLUMN * j), stored, offset))


@jit
def _round_columns(group, targets, stored, offset):
    """Write the codes that lie nearest, column after column, to what is wanted; returns their cost."""
    asked, cost, inverse = stack_f32(1024), zeros(1, PANEL_TILES), splat(1.0) / stored
    for j in range(GROUP):
        _store(asked + COLUMN * j, zeros(1, PANEL_TILES))
    for j in range(GROUP):
        diagonal, target = _diagonal(group, j), column_of(targets, j, cost)
        wanted = fma(_load(asked + COLUMN * j), splat(1.0 / diagonal), target)
        code = _clamp(round_even((wanted - offset) * inverse), 0, group.largest_code)
        value = fma(code, stored, offset)
        left = (wanted - value) * splat(diagonal)
        cost = fma(left, left, cost)
        _store(group.codes + COLUMN * j, code)
        _add(target - value, _row(group, j), j + 1, asked)
    return cost


@jit
def _descend_group(group, slope):
    """Move scale, min and codes of one group; `slope` is H times all errors, kept up to date for its columns."""
    for _ in range(TURNS):
        _move_scale(group, slope)
        _move_codes(group, slope)


@jit
def _move_scale(group, slope):
    """Move scale and min to the bytes next to the least cost for the codes as they are, if it is lower there."""
    zero, scale_unit, min_unit = zeros(1, PANEL_TILES), _load(group.scale_unit), _load(group.min_unit)
    # A move of c codes and m mins costs `c² cc + 2 c m c1 + m² ones - 2 (c cg + m g1)`.
    cc, c1, cg, g1, ones = zero, zero, zero, zero, 0.0
    for i in range(GROUP):
        with_codes, with_ones = zero, 0.0
        for j in range(GROUP):
            h = get_f32(_row(group, i) + 4 * j)
            with_codes, with_ones = fma(_load(group.codes + COLUMN * j), splat(h), with_codes), with_ones + h
        code, g = _load(group.codes + COLUMN * i), _load(slope + COLUMN * i)
        cc, c1, cg = fma(code, with_codes, cc), fma(code, splat(with_ones), c1), fma(code, g, cg)
        g1, ones = g1 + g, ones + with_ones
    old_scale, old_min = _load(group.scale), _load(group.min)
    best = ratio(cg * splat(ones) - g1 * c1, cc * splat(ones) - c1 * c1)
    new_scale = _clamp(old_scale + round_even(best / scale_unit), 1.0, 255.0)
    c = (new_scale - old_scale) * scale_unit
    new_min = _clamp(old_min + round_even((g1 - c * c1) * splat(1.0 / ones) / min_unit), -127.0, 127.0)
    m = (new_min - old_min) * min_unit
    cost = c * (c * cc + m * c1 - cg - cg) + m * (m * splat(ones) + c * c1 - g1 - g1)
    c, m = where_less(cost, zero, c, zero), where_less(cost, zero, m, zero)
    _store(group.scale, where_less(cost, zero, new_scale, old_scale))
    _store(group.min, where_less(cost, zero, new_min, old_min))
    for j in range(GROUP):
        _move(group, slope, j, zero - fma(_load(group.codes + COLUMN * j), c, m))


@jit
def _move_codes(group, slope):
    """Move each code in turn to where the cost is least while all else stays."""
    stored = _load(group.scale) * _load(group.scale_unit)
    inverse = splat(1.0) / stored
    for j in range(GROUP):
        place = group.codes + COLUMN * j
        old, step = _load(place), _load(slope + COLUMN * j) * splat(1.0 / _diagonal(group, j))
        code = _clamp(round_even(fma(step, inverse, old)), 0, group.largest_code)
        _store(place, code)
        _move(group, slope, j, (old - code) * stored)


@jit
def _move(group, slope, j, moved):
    """Add to the error of a column, and bring the slope up to date."""
    place = group.errors + COLUMN * j
    _store(place, _load(place) + moved)
    _add(moved, _row(group, j), 0, slope)
