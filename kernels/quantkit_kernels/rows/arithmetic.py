"""Sums, products, multiples, bounds and copies of one token's row."""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import tanh
from quantkit_kernels.simd import clamp as clamp_lanes
from quantkit_kernels.simd import get_f32, load_line_f32, load_wide_partial_f32, put_f32, splat_wide, store


@jit
def add(a, b, out, n):
    """`out = a + b` over `n` columns."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(a + place) + load_line_f32(b + place))


@jit
def multiply(a, b, out, n):
    """`out = a * b`."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(a + place) * load_line_f32(b + place))


@jit
def scale(x, factor, out, n):
    """`out = x * factor`."""
    factors = splat_wide(factor)
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(x + place) * factors)


@jit
def scale_parts(x, factors, size, out, n):
    """`out = x`, every `size` columns times their own of the numbers at `factors`."""
    if size < n and size % 16:
        for column in range(n):
            put_f32(out + 4 * column, get_f32(x + 4 * column) * get_f32(factors + 4 * (column // size)))
        return
    for begin in range(0, n, size):
        scale(x + 4 * begin, get_f32(factors + 4 * (begin // size)), out + 4 * begin, size)


@jit
def scale_by_position(x, position, period, beta, out, n):
    """`out = x * (1 + beta * log(1 + floor(position / period)))`; `period` is a whole number."""
    scale(x, np.float32(1.0 + beta * math.log(1.0 + position // period)), out, n)


@jit
def clamp(x, limit, out, n):
    """`out = min(max(x, -limit), limit)`; NaN stays NaN."""
    low, high = splat_wide(-limit), splat_wide(limit)
    for place in range(0, 4 * n, 64):
        store(out + place, clamp_lanes(load_line_f32(x + place), low, high))


@jit
def softcap(x, limit, out, n):
    """`out = limit * tanh(x / limit)`."""
    limits, inverse = splat_wide(limit), splat_wide(1.0 / limit)
    for place in range(0, 4 * n, 64):
        store(out + place, tanh(load_line_f32(x + place) * inverse) * limits)


@jit
def copy(x, out, n):
    """`out = x`."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(x + place))


@jit
def copy_columns(x, begin, end, out):
    """`out` = columns `begin` to `end` of `x`, which may begin anywhere; nothing behind them is read."""
    first, last = x + 4 * begin, x + 4 * end
    while first + 64 <= last:
        store(out, load_line_f32(first))
        first, out = first + 64, out + 64
    if first < last:
        store(out, load_wide_partial_f32(first, (last - first) >> 2))


@jit
def copy_anywhere(x, out, n):
    """`n` columns that may begin and end anywhere in both rows; nothing behind them is read or written."""
    whole = 4 * (n & ~15)
    for place in range(0, whole, 64):
        store(out + place, load_line_f32(x + place))
    for place in range(whole, 4 * n, 4):
        put_f32(out + place, get_f32(x + place))


@jit
def append(a, b, out, parts, size, columns):
    """Each of `parts` parts of `size` columns of `a`, and behind every one of them the `columns` of `b`."""
    for part in range(parts):
        first = out + 4 * part * (size + columns)
        copy_anywhere(a + 4 * part * size, first, size)
        copy_anywhere(b, first + 4 * size, columns)
