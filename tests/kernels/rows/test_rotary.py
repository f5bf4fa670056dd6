"""Rotary embedding against numpy: any head size, in place, with padding that holds NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import rotary


@jit(entry=True)
def rotation(position, frequencies, half, factor, out):
    rotary.rotation(position, frequencies, half, factor, out)


@jit(entry=True)
def rope(x, turns, out, n, head_dim):
    rotary.rope(x, turns, out, n, head_dim)


@pytest.mark.parametrize("half", [1, 3, 8, 13, 32])
@pytest.mark.parametrize("position", [0, 1, 100_000])
def test_rotation(half, position):
    frequencies = (10_000.0 ** (-np.arange(half) / half)).astype(np.float32)
    out = row(np.zeros(2 * half))
    rotation(position, address(frequencies), half, np.float32(1.25), address(out))
    angles = (np.float32(position) * frequencies).astype(np.float64)
    exact = 1.25 * np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(result(out, 2 * half), exact, rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_rope(half, heads, in_place, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((heads, 2, half)).astype(np.float32)
    cosine, sine = rng.standard_normal((2, half)).astype(np.float32)
    a, turns = row(x.ravel()), row(np.concatenate([cosine, sine]))
    out = a if in_place else row(np.zeros(x.size))
    rope(address(a), address(turns), address(out), x.size, 2 * half)
    low, high = x[:, 0], x[:, 1]
    expected = np.stack([low * cosine - high * sine, high * cosine + low * sine], 1)
    np.testing.assert_array_equal(result(out, x.size), expected.ravel())
