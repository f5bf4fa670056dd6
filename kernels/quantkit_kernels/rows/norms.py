"""Normalization of one token's row: by its size (RMSNorm), or by its mean and its spread (LayerNorm); what else asks
for these."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.arithmetic import scale
from quantkit_kernels.rows.functions import relu
from quantkit_kernels.simd import (
    blend_first,
    fma,
    get_f32,
    load_f32,
    load_line_f32,
    load_partial_f32,
    put_f32,
    splat,
    splat_wide,
    store,
    sum_lanes,
    zeros,
)

SMALLEST = 1e-5
"""Mean square that `match_rms` divides by at least."""


class Norm(NamedTuple):
    """What a normalization multiplies by and adds, and over how many columns it looks."""

    weight: int
    """Address of f32, 0 for none."""
    bias: int
    """Address of f32 `[weight_columns]`, 0 for none."""
    weight_columns: int
    """`size`: every part has the same weights; else as many as the row has columns."""
    size: int
    """Consecutive columns that are normalized together, a part."""
    eps: float
    offset: float
    """Added to the weights."""


@jit
def rms_norm(x, out, n, norm):
    """`out = x / sqrt(mean(x**2) + eps) * (weight + offset)` over every `size` of `n` columns."""
    for start in range(0, n, norm.size):
        mean_square = _sum_of_squares(x + 4 * start, 0.0, norm.size) / norm.size
        _scale(x + 4 * start, out + 4 * start, start, 0.0, mean_square, norm)


@jit
def layer_norm(x, out, n, norm):
    """`out = (x - mean(x)) / sqrt(variance(x) + eps) * (weight + offset) + bias` over every `size` of `n` columns."""
    for start in range(0, n, norm.size):
        mean = np.float32(_sum(x + 4 * start, 0.0, norm.size) / norm.size)
        variance = _sum_of_squares(x + 4 * start, mean, norm.size) / norm.size
        _scale(x + 4 * start, out + 4 * start, start, mean, variance, norm)


@jit
def match_rms(x, target, out, n):
    """`x` with the root mean square of `target`; a mean square of `x` below `SMALLEST` counts as that."""
    wanted, found = _sum_of_squares(target, 0.0, n) / n, _sum_of_squares(x, 0.0, n) / n
    scale(x, np.float32(math.sqrt(wanted / max(found, SMALLEST))), out, n)


@jit
def sparsify(x, out, n, factor):
    """What `x` has beyond `mean(x) + factor * std(x)`, zero where it has less."""
    mean = np.float32(_sum(x, 0.0, n) / n)
    cutoff = splat_wide(np.float32(mean + factor * math.sqrt(_sum_of_squares(x, mean, n) / n)))
    for place in range(0, 4 * n, 64):
        store(out + place, relu(load_line_f32(x + place) - cutoff))


@jit
def _scale(x, out, start, centre, mean_square, norm):
    """One part, which begins at column `start`: subtract, divide, then apply weights and biases."""
    first = start if norm.weight_columns > norm.size else 0
    weight, bias = norm.weight + 4 * first, norm.bias + 4 * first
    inverse = np.float32(1.0 / math.sqrt(mean_square + norm.eps))
    centre = np.float32(centre)
    whole = norm.size & ~7
    for place in range(0, 4 * whole, 32):
        y = (load_f32(x + place) - splat(centre)) * splat(inverse)
        if norm.weight:
            y = y * (load_f32(weight + place) + splat(norm.offset))
        if norm.bias:
            y = y + load_f32(bias + place)
        store(out + place, y)
    for place in range(4 * whole, 4 * norm.size, 4):
        tail = (get_f32(x + place) - centre) * inverse
        if norm.weight:
            tail = tail * (get_f32(weight + place) + norm.offset)
        if norm.bias:
            tail = tail + get_f32(bias + place)
        put_f32(out + place, tail)


def _total(accumulate):
    """A sum over `size` columns in four registers, added pairwise; columns past the last 32 join the first.

    `accumulate(u, sum)` adds one register of columns less `centre`.
    """

    @jit
    def total(x, centre, size):
        a, b, c, d = zeros(1, 1), zeros(1, 1), zeros(1, 1), zeros(1, 1)
        centres = splat(centre)
        end = x + 4 * size
        while x + 128 <= end:
            a = accumulate(load_f32(x) - centres, a)
            b = accumulate(load_f32(x + 32) - centres, b)
            c = accumulate(load_f32(x + 64) - centres, c)
            d = accumulate(load_f32(x + 96) - centres, d)
            x += 128
        while x + 32 <= end:
            a = accumulate(load_f32(x) - centres, a)
            x += 32
        if x < end:
            left = (end - x) >> 2
            a = accumulate(blend_first(left, load_partial_f32(x, left) - centres, zeros(1, 1)), a)
        return sum_lanes((a + b) + (c + d))

    return total


@jit
def _add(u, total):
    return total + u


@jit
def _add_square(u, total):
    return fma(u, u, total)


_sum = _total(_add)
_sum_of_squares = _total(_add_square)
