"""Sums, multiples and copies against numpy: any number of columns, in place, with padding that holds NaN."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import arithmetic


@jit(entry=True)
def add(a, b, out, n):
    arithmetic.add(a, b, out, n)


@jit(entry=True)
def scale(x, factor, out, n):
    arithmetic.scale(x, factor, out, n)


@jit(entry=True)
def copy(x, out, n):
    arithmetic.copy(x, out, n)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 75), st.booleans(), st.integers(0, 2**32 - 1))
def test_add_scale_copy(n, in_place, seed):
    a, b = np.random.default_rng(seed).standard_normal((2, n)).astype(np.float32)
    second = row(b)
    for kernel, arguments, expected in (
        (add, (address(second),), a + b),
        (scale, (np.float32(1.7),), a * np.float32(1.7)),
        (copy, (), a),
    ):
        x = row(a)
        out = x if in_place else row(np.zeros(n))
        kernel(address(x), *arguments, address(out), n)
        np.testing.assert_array_equal(result(out, n), expected)
