"""exp, tanh and the activations against float64: error in units of the last place, limits, the same bits everywhere."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp, exp_negative, gelu, gelu_tanh, silu, tanh
from quantkit_kernels.simd import load_wide_f32, store, zeros_wide

SMALLEST = np.finfo(np.float32).smallest_normal
EXP, SILU, GELU, GELU_TANH, EXP_NEGATIVE, TANH = range(6)


@jit(entry=True)
def apply(function, x, out, n):
    for place in range(0, 4 * n, 64):
        v = load_wide_f32(x + place, zeros_wide(1, 1))
        if function == EXP:
            y = exp(v)
        elif function == SILU:
            y = silu(v)
        elif function == GELU:
            y = gelu(v)
        elif function == GELU_TANH:
            y = gelu_tanh(v)
        elif function == EXP_NEGATIVE:
            y = exp_negative(v)
        else:
            y = tanh(v)
        store(out + place, y)


def run(function, x):
    x = np.ascontiguousarray(x, np.float32)
    padded = np.zeros(-(-x.size // 16) * 16, np.float32)
    padded[: x.size] = x
    out = np.empty_like(padded)
    apply(function, padded.ctypes.data, out.ctypes.data, padded.size)
    return out[: x.size]


def exact_gelu(x):
    return np.array([v / 2 * math.erfc(-v * math.sqrt(0.5)) for v in x.tolist()])


def exact_gelu_tanh(x):
    y = math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-y))


def exact_silu(x):
    return x / (1 + np.exp(-x))


def ulps(got, exact):
    """Error in units of the last place of the exact result; those of the smallest normal number below it."""
    unit = np.spacing(np.maximum(np.abs(exact), SMALLEST).astype(np.float32)).astype(np.float64)
    return np.abs(got - exact) / unit


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "budget"),
    [
        (EXP, np.exp, -87.0, 88.7, 1.0),
        (EXP_NEGATIVE, np.exp, -87.0, 0.0, 2.0),
        (SILU, exact_silu, -87.0, 100.0, 4.0),
        (GELU, exact_gelu, -12.8, 100.0, 8.0),
        (GELU_TANH, exact_gelu_tanh, -0.5, 100.0, 4.0),
        (TANH, np.tanh, -12.0, 12.0, 3.0),
    ],
    ids=["exp", "exp_negative", "silu", "gelu", "gelu_tanh", "tanh"],
)
def test_within_a_few_units_of_the_last_place(function, exact, low, high, budget):
    near = np.linspace(-1.0, 1.0, 20_001) * min(-low, 1.0)
    x = np.concatenate([np.linspace(low, high, 100_001), near]).astype(np.float32)
    errors = ulps(run(function, x), exact(x.astype(np.float64)))
    assert errors.max() <= budget, x[errors.argmax()]


def test_tail_of_gelu_tanh_is_accurate_relative_to_its_exponent():
    x = np.linspace(-6.0, -0.5, 50_001).astype(np.float32)
    exact = exact_gelu_tanh(x.astype(np.float64))
    exponent = np.abs(math.sqrt(8 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3))
    assert (np.abs(run(GELU_TANH, x) - exact) <= 2.0**-22 * (1 + exponent) * np.abs(exact)).all()


def test_exp_reaches_zero_subnormal_numbers_and_infinity():
    x = np.array([0.0, -0.0, -100.0, -103.9, -104.1, -1e30, 88.73, 89.5, 1e30, np.inf, -np.inf, np.nan], np.float32)
    expected = [1, 1, np.exp(-100.0), np.exp(-103.9), 0, 0, np.inf, np.inf, np.inf, np.inf, 0, np.nan]
    np.testing.assert_allclose(run(EXP, x), expected, rtol=0, atol=1.4e-45)


def test_exp_negative_is_one_at_zero_and_zero_far_away():
    x = np.array([0.0, -0.0, -1e-30, -87.1, -1e30, -3e38, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(run(EXP_NEGATIVE, x), np.array([1, 1, 1, 0, 0, 0, 0, np.nan], np.float32))


def test_tanh_is_odd_and_ends_at_one():
    x = np.array([0.0, 1e-38, 1e-5, 0.5, 9.0, 10.1, 3e38, np.inf, np.nan], np.float32)
    got = run(TANH, x)
    np.testing.assert_array_equal(got[[0, 5, 6, 7, 8]], np.array([0, 1, 1, 1, np.nan], np.float32))
    assert (ulps(got[:5], np.tanh(x[:5].astype(np.float64))) <= 3).all()
    np.testing.assert_array_equal(run(TANH, -x), -got)
    assert np.signbit(run(TANH, -x)[0])


@pytest.mark.parametrize("function", [SILU, GELU, GELU_TANH])
def test_limits_of_activations(function):
    x = np.array([np.inf, 1e30, 3e38, 0.0, -3e38, -1e30, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(run(function, x), np.array([np.inf, 1e30, 3e38, 0, 0, 0, 0, np.nan], np.float32))


def test_bits_are_the_same_on_every_machine():
    x = (np.arange(-20_000, 20_000) / 256).astype(np.float32)
    inputs = [x, x, x, x, -np.abs(x), x]
    digests = [hashlib.sha256((run(f, y) + np.float32(0)).tobytes()).hexdigest()[:12] for f, y in enumerate(inputs)]
    assert digests == DIGESTS


DIGESTS = ["95a481da789f", "5957c502dfcd", "8168cd80fa05", "f316fa532303", "36aabad914d6", "fb9f1ffaa471"]
"""Of results on x86-64 with AVX2, AVX-512 VNNI and plain LLVM vectors, which are equal."""
