"""Rotary embedding against numpy: any head size, whole or in part, either order of pairs, in place, with padding that
holds NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.rows import rotary


@jit(entry=True)
def rotation(position, frequencies, half, factor, out):
    rotary.rotation(position, frequencies, half, factor, out)


@jit(entry=True)
def rope(x, turns, out, n, head_dim, begin, rotary_dim):
    rotary.rope(x, turns, out, n, head_dim, begin, rotary_dim)


@jit(entry=True)
def rope_interleaved(x, turns, out, n, head_dim, begin, rotary_dim):
    rotary.rope_interleaved(x, turns, out, n, head_dim, begin, rotary_dim)


@pytest.mark.parametrize("half", [1, 3, 8, 13, 32])
@pytest.mark.parametrize("position", [0, 1, 100_000])
def test_rotation(half: int, position: int) -> None:
    frequencies = (10_000.0 ** (-np.arange(half) / half)).astype(np.float32)
    out = row(np.zeros(2 * half))
    rotation(position, address(frequencies), half, np.float32(1.25), address(out))
    angles = (np.float32(position) * frequencies).astype(np.float64)
    exact = 1.25 * np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(result(out, 2 * half), exact, rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 40), st.sampled_from([0, 0, 1, 7, 40]), st.sampled_from([0, 0, 1, 40]), st.integers(1, 4),
    st.booleans(), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_rope(half: int, rest: int, begin: int, heads: int, interleaved: bool, in_place: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    head_dim = begin + 2 * half + rest
    x: NDArray[Any] = rng.standard_normal((1, heads * head_dim)).astype(np.float32)
    turns: NDArray[Any] = rng.standard_normal((1, 2 * half)).astype(np.float32)
    a, b = row(x), row(turns)
    out = a if in_place else row(np.zeros(x.size))
    kernel = rope_interleaved if interleaved else rope
    kernel(address(a), address(b), address(out), x.size, head_dim, begin, 2 * half)
    expected = truth.rope(x, turns, head_dim=head_dim, begin=begin, rotary_dim=2 * half, interleaved=interleaved)
    np.testing.assert_array_equal(result(out, x.size), expected[0])
