"""Norms against float64: any number of columns, in place, with padding that holds NaN."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import norms


@jit(entry=True)
def rms_norm(x, weight, out, n, size, eps, offset):
    norms.rms_norm(x, weight, out, n, size, eps, offset)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.booleans(),
    st.sampled_from([1e-12, 1.0, 1e12]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_rms_norm(size, pieces, offset, in_place, magnitude, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((pieces, size)) * magnitude).astype(np.float32)
    weight = rng.standard_normal(size).astype(np.float32)
    eps = np.float32(1e-5)
    a, w = row(x.ravel()), row(weight)
    out = a if in_place else row(np.zeros(x.size))
    rms_norm(address(a), address(w), address(out), x.size, size, eps, np.float32(offset))
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + eps) * (weight.astype(np.float64) + offset)
    np.testing.assert_allclose(result(out, x.size), exact.ravel(), rtol=2e-6, atol=1e-6 * np.abs(exact).max())


def test_rms_norm_of_zeros_is_zero():
    x, w = row(np.zeros(40)), row(np.ones(40))
    rms_norm(address(x), address(w), address(x), 40, 40, np.float32(1e-6), np.float32(0))
    assert (result(x, 40) == 0).all()
