"""Griffin's recurrence against float64, and against itself: the same bits for any chunks and units, nothing beside."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arrays import UNTOUCHED, address
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.interpreter.operations import LINE
from quantkit_kernels.operands import Rows
from quantkit_kernels.recurrent import rg_lru as kernels

TOKENS = 12
TOLERANCE = 2e-6
"""Of sums over tokens, relative to the largest output."""


@jit(entry=True)
def rg_lru(channels, weight, x, input_gate, recurrent_gate, out, state, tokens, first, last):
    kernels.rg_lru(channels, weight, x, input_gate, recurrent_gate, out, state, tokens, first, last)


def test_a_unit_is_a_line() -> None:
    assert kernels.UNIT == LINE


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 50),
    scale=st.sampled_from([0.1, 2.0, 30.0]),
    cuts=st.sets(st.integers(1, TOKENS - 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunks_and_units_give_the_bits_of_one(channels: int, scale: float, cuts: set[int], seed: int) -> None:
    random, padded = np.random.default_rng(seed), -(-channels // LINE) * LINE
    inputs = np.full((3, TOKENS, padded), np.nan, np.float32)
    inputs[..., :channels] = scale * random.standard_normal((3, TOKENS, channels))
    weight = np.zeros(padded, np.float32)
    weight[:channels] = scale * random.standard_normal(channels)

    def run(ends: list[int], units: list[int]) -> NDArray[np.float32]:
        out = np.full((TOKENS + 1, padded + LINE), UNTOUCHED, np.float32)
        state = np.zeros(2 * padded + LINE, np.float32)
        state[-LINE:] = UNTOUCHED
        for start, end in zip([0, *ends], ends, strict=False):
            rows = [Rows(address(array[start:]), array.strides[0]) for array in (*inputs, out)]
            for first, last in zip([0, *units], units, strict=False):
                rg_lru(channels, address(weight), *rows, address(state), end - start, first, last)
        assert (state[-LINE:] == UNTOUCHED).all()
        assert (out[:, padded:] == UNTOUCHED).all()
        assert (out[TOKENS:] == UNTOUCHED).all()
        return out[:TOKENS, :channels]

    whole = run([TOKENS], [padded // LINE])
    x, i, r = inputs[..., :channels].astype(np.float64)
    exact = truth.rg_lru(x, i, r, np.zeros(2 * channels, np.float32), weight[:channels].astype(np.float64))
    np.testing.assert_allclose(whole, exact, rtol=0, atol=TOLERANCE * max(1.0, np.abs(exact).max()))
    assert run([*sorted(cuts), TOKENS], list(range(1, padded // LINE + 1))).tobytes() == whole.tobytes()
