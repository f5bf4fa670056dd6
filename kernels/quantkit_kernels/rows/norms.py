"""Normalization of one token's row."""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    fma,
    get_f32,
    load_f32,
    load_partial_f32,
    put_f32,
    splat,
    store,
    sum_lanes,
    zeros,
)


@jit
def rms_norm(x, weight, out, n, size, eps, offset):
    """`out = x / sqrt(mean(x**2) + eps) * (weight + offset)` over every `size` consecutive columns."""
    whole = size & ~7
    for start in range(0, n, size):
        row, result = x + 4 * start, out + 4 * start
        inverse = np.float32(1.0 / math.sqrt(_sum_of_squares(row, size) / size + eps))
        factors, offsets = splat(inverse), splat(offset)
        for place in range(0, 4 * whole, 32):
            store(result + place, load_f32(row + place) * factors * (load_f32(weight + place) + offsets))
        for place in range(4 * whole, 4 * size, 4):
            put_f32(result + place, get_f32(row + place) * inverse * (get_f32(weight + place) + offset))


@jit
def _sum_of_squares(x, size):
    """Four registers of sums, added pairwise; columns past the last 32 join the first."""
    a, b, c, d = zeros(1, 1), zeros(1, 1), zeros(1, 1), zeros(1, 1)
    end = x + 4 * size
    while x + 128 <= end:
        u, v, w, z = load_f32(x), load_f32(x + 32), load_f32(x + 64), load_f32(x + 96)
        a, b, c, d = fma(u, u, a), fma(v, v, b), fma(w, w, c), fma(z, z, d)
        x += 128
    while x + 32 <= end:
        u = load_f32(x)
        a = fma(u, u, a)
        x += 32
    if x < end:
        u = load_partial_f32(x, (end - x) >> 2)
        a = fma(u, u, a)
    return sum_lanes((a + b) + (c + d))
