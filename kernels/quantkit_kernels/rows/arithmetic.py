"""Sums, multiples and copies of one token's row."""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import load_line_f32, splat_wide, store


@jit
def add(a, b, out, n):
    """`out = a + b` over `n` columns."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(a + place) + load_line_f32(b + place))


@jit
def scale(x, factor, out, n):
    """`out = x * factor`."""
    factors = splat_wide(factor)
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(x + place) * factors)


@jit
def copy(x, out, n):
    """`out = x`."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(x + place))
