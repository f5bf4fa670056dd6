"""Mamba's layer against float64, and against itself: the same bits for any chunks and units, nothing beside them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arrays import UNTOUCHED, address
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.interpreter.operations import LINE, MOST_STATES
from quantkit_kernels.operands import Rows
from quantkit_kernels.recurrent import selective_scan as kernels
from quantkit_kernels.recurrent.selective_scan import Scan

TOKENS = 12
TOLERANCE = 2e-6
"""Of sums over the numbers of a channel and over tokens, relative to the largest output."""


@jit(entry=True)
def selective_scan(layer, x, dt, bc, out, state, tokens, first, last):
    kernels.selective_scan(layer, x, dt, bc, out, state, tokens, first, last)


def test_sizes_are_those_of_the_table_of_operations() -> None:
    assert (kernels.UNIT, kernels.RATES) == (LINE, MOST_STATES * LINE)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 50),
    size=st.sampled_from([1, 5, 16, MOST_STATES]),
    cuts=st.sets(st.integers(1, TOKENS - 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunks_and_units_give_the_bits_of_one(channels: int, size: int, cuts: set[int], seed: int) -> None:
    random, padded = np.random.default_rng(seed), -(-channels // LINE) * LINE
    x, dt = np.full((2, TOKENS, padded), np.nan, np.float32)
    x[:, :channels], dt[:, :channels] = 2 * random.standard_normal((2, TOKENS, channels))
    bc = random.standard_normal((TOKENS, 2 * size)).astype(np.float32)
    a_log, skip = np.zeros((size, padded), np.float32), np.zeros(padded, np.float32)
    a_log[:, :channels], skip[:channels] = random.standard_normal((size, channels)), random.standard_normal(channels)
    layer = Scan(channels, size, address(a_log), address(skip))

    def run(ends: list[int], units: list[int]) -> NDArray[np.float32]:
        out = np.full((TOKENS + 1, padded + LINE), UNTOUCHED, np.float32)
        state = np.zeros(padded * size + LINE, np.float32)
        state[-LINE:] = UNTOUCHED
        for start, end in zip([0, *ends], ends, strict=False):
            rows = [Rows(address(array[start:]), array.strides[0]) for array in (x, dt, bc, out)]
            for first, last in zip([0, *units], units, strict=False):
                selective_scan(layer, *rows, address(state), end - start, first, last)
        assert (state[-LINE:] == UNTOUCHED).all()
        assert (out[:, padded:] == UNTOUCHED).all()
        assert (out[TOKENS:] == UNTOUCHED).all()
        return out[:TOKENS, :channels]

    whole = run([TOKENS], [padded // LINE])
    exact = truth.selective_scan(
        x[:, :channels].astype(np.float64),
        dt[:, :channels].astype(np.float64),
        bc.astype(np.float64),
        np.zeros(channels * size, np.float32),
        a_log[:, :channels].T.astype(np.float64),
        skip[:channels].astype(np.float64),
        state_size=size,
    )
    np.testing.assert_allclose(whole, exact, rtol=0, atol=TOLERANCE * max(1.0, np.abs(exact).max()))
    assert run([*sorted(cuts), TOKENS], list(range(1, padded // LINE + 1))).tobytes() == whole.tobytes()
