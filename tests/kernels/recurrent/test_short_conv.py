"""Short convolutions: equal to the numpy truth, whatever the chunks, to the same bits, and nothing beside a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arrays import UNTOUCHED, address
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.interpreter.operations import ACTIVATIONS, LINE
from quantkit_kernels.operands import Rows
from quantkit_kernels.recurrent import short_conv as kernels
from quantkit_kernels.recurrent.short_conv import Convolution


@jit(entry=True)
def short_conv(weight, bias, channels, taps, activation, x, x_stride, out, out_stride, state, tokens, first, last):
    convolution = Convolution(weight, bias, channels, taps, activation)
    kernels.short_conv(convolution, Rows(x, x_stride), Rows(out, out_stride), state, tokens, first, last)


def test_a_unit_is_a_line() -> None:
    assert kernels.UNIT == LINE


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 50),
    taps=st.integers(2, 8),
    begin=st.integers(0, 20),
    cuts=st.sets(st.integers(1, 11)),
    activation=st.sampled_from(ACTIVATIONS),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunks_and_units_give_the_bits_of_one(
    channels: int, taps: int, begin: int, cuts: set[int], activation: str, has_bias: bool, seed: int
) -> None:
    random, tokens, padded = np.random.default_rng(seed), 12, -(-channels // LINE) * LINE
    x = np.full((tokens, begin + channels), np.nan, np.float32)
    x[:, begin:] = random.standard_normal((tokens, channels))
    weight = random.standard_normal((channels, 1, taps)).astype(np.float32)
    bias = random.standard_normal(channels).astype(np.float32) if has_bias else None
    of_taps = np.zeros((taps, padded), np.float32)
    of_taps[:, :channels] = weight.reshape(channels, taps).T
    padded_bias = None if bias is None else np.pad(bias, (0, padded - channels))

    def run(ends: list[int], units: list[int]) -> NDArray[np.float32]:
        out = np.full((tokens + 1, padded + LINE), UNTOUCHED, np.float32)
        state = np.zeros(padded * (taps - 1) + LINE, np.float32)
        state[-LINE:] = UNTOUCHED
        for start, end in zip([0, *ends], ends, strict=False):
            for first, last in zip([0, *units], units, strict=False):
                rows = address(x) + x.strides[0] * start + 4 * begin, x.strides[0]
                results = address(out) + out.strides[0] * start, out.strides[0]
                short_conv(
                    *(address(of_taps), address(padded_bias), channels, taps, ACTIVATIONS.index(activation)),
                    *(*rows, *results, address(state), end - start, first, last),
                )
        assert (state[-LINE:] == UNTOUCHED).all()
        assert (out[:, padded:] == UNTOUCHED).all()
        assert (out[tokens:] == UNTOUCHED).all()
        return out[:tokens, :channels]

    whole = run([tokens], [padded // LINE])
    expected = truth.short_conv(
        x.astype(np.float64),
        np.zeros(channels * (taps - 1), np.float32),
        weight.astype(np.float64),
        None if bias is None else bias.astype(np.float64),
        begin=begin,
        end=begin + channels,
        taps=taps,
        activation=activation,
    )
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    assert run([*sorted(cuts), tokens], list(range(1, padded // LINE + 1))).tobytes() == whole.tobytes()


def test_the_truth_is_advanced_in_place() -> None:
    random = np.random.default_rng(5)
    x, weight = random.standard_normal((9, 3)).astype(np.float32), random.standard_normal((3, 1, 4))
    state = np.zeros(9, np.float32)
    how: dict[str, Any] = {"begin": 0, "end": 3, "taps": 4, "activation": "silu"}
    whole = truth.short_conv(x.astype(np.float64), np.zeros(9, np.float32), weight, **how)
    parts = [truth.short_conv(part.astype(np.float64), state, weight, **how) for part in (x[:2], x[2:3], x[3:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12)
    assert np.array_equal(state.reshape(3, 3), x[6:])
