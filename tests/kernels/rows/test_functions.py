"""exp, tanh and the activations against float64: error in units of the last place, limits, the same bits everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import functions
from quantkit_kernels.simd import load_wide_f32, store, zeros_wide

Numbers = NDArray[np.float64]
Exact = Callable[[Numbers], Numbers]

SMALLEST = np.finfo(np.float32).smallest_normal


def _over_rows(function):
    @jit(entry=True)
    def apply(x, out, n):
        for place in range(0, 4 * n, 64):
            store(out + place, function(load_wide_f32(x + place, zeros_wide(1, 1))))

    return apply


NAMES = (
    *("exp", "exp_negative", "exp2_negative", "expm1_negative", "tanh"),
    *("silu", "gelu", "gelu_tanh", "quick_gelu", "sigmoid", "softplus", "relu", "relu2"),
)
FUNCTIONS = {name: _over_rows(getattr(functions, name)) for name in NAMES}


def run(name: str, x: NDArray[np.floating]) -> NDArray[np.float32]:
    x = np.ascontiguousarray(x, np.float32)
    padded = np.zeros(-(-x.size // 16) * 16, np.float32)
    padded[: x.size] = x
    out = np.empty_like(padded)
    FUNCTIONS[name](padded.ctypes.data, out.ctypes.data, padded.size)
    return out[: x.size]


def exact_gelu(x: Numbers) -> Numbers:
    return np.array([v / 2 * math.erfc(-v * math.sqrt(0.5)) for v in x.tolist()])


def exact_gelu_tanh(x: Numbers) -> Numbers:
    y = math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-y))


def exact_silu(x: Numbers) -> Numbers:
    return x / (1 + np.exp(-x))


def exact_quick_gelu(x: Numbers) -> Numbers:
    return x / (1 + np.exp(-1.702 * x))


def exact_sigmoid(x: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-x))


def exact_relu(x: Numbers) -> Numbers:
    return np.maximum(x, 0)


def ulps(got: NDArray[np.float32], exact: Numbers) -> Numbers:
    """Error in units of the last place of the exact result; those of the smallest normal number below it."""
    unit = np.spacing(np.maximum(np.abs(exact), SMALLEST).astype(np.float32)).astype(np.float64)
    return np.abs(got - exact) / unit


@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "budget"),
    [
        ("exp", np.exp, -87.0, 88.7, 1.0),
        ("exp_negative", np.exp, -87.0, 0.0, 2.0),
        ("exp2_negative", np.exp2, -125.0, 0.0, 2.0),
        ("expm1_negative", np.expm1, -87.0, 0.0, 3.0),
        ("tanh", np.tanh, -12.0, 12.0, 3.0),
        ("silu", exact_silu, -87.0, 100.0, 4.0),
        ("gelu", exact_gelu, -12.8, 100.0, 8.0),
        ("gelu_tanh", exact_gelu_tanh, -0.5, 100.0, 4.0),
        ("quick_gelu", exact_quick_gelu, -0.5, 100.0, 4.0),
        ("sigmoid", exact_sigmoid, -87.0, 100.0, 4.0),
        ("softplus", lambda x: np.logaddexp(0, x), -87.0, 100.0, 4.0),
        ("relu", exact_relu, -100.0, 100.0, 0.0),
        ("relu2", lambda x: exact_relu(x) ** 2, -100.0, 100.0, 0.5),
    ],
)
def test_within_a_few_units_of_the_last_place(name: str, exact: Exact, low: float, high: float, budget: float) -> None:
    near = np.clip(np.linspace(-1.0, 1.0, 20_001), low, high)
    x = np.concatenate([np.linspace(low, high, 100_001), near]).astype(np.float32)
    errors = ulps(run(name, x), exact(x.astype(np.float64)))
    assert errors.max() <= budget, x[errors.argmax()]


@pytest.mark.parametrize(
    ("name", "exact", "exponent"),
    [
        ("gelu_tanh", exact_gelu_tanh, lambda x: math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
        ("quick_gelu", exact_quick_gelu, lambda x: 1.702 * x),
    ],
)
def test_tails_of_gelus_are_accurate_relative_to_their_exponent(name: str, exact: Exact, exponent: Exact) -> None:
    x = np.linspace(-6.0, -0.5, 50_001).astype(np.float32)
    wide = x.astype(np.float64)
    error = np.abs(run(name, x) - exact(wide))
    assert (error <= 2.0**-22 * (1 + np.abs(exponent(wide))) * np.abs(exact(wide))).all()


def test_exp_reaches_zero_subnormal_numbers_and_infinity() -> None:
    x = np.array([0.0, -0.0, -100.0, -103.9, -104.1, -1e30, 88.73, 89.5, 1e30, np.inf, -np.inf, np.nan], np.float32)
    expected = [1, 1, np.exp(-100.0), np.exp(-103.9), 0, 0, np.inf, np.inf, np.inf, np.inf, 0, np.nan]
    np.testing.assert_allclose(run("exp", x), expected, rtol=0, atol=1.4e-45)


@pytest.mark.parametrize(("name", "last"), [("exp_negative", -87.1), ("exp2_negative", -125.1)])
def test_exp_negative_is_one_at_zero_and_zero_far_away(name: str, last: float) -> None:
    x = np.array([0.0, -0.0, -1e-30, last, -1e30, -3e38, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(run(name, x), np.array([1, 1, 1, 0, 0, 0, 0, np.nan], np.float32))


def test_tanh_is_odd_and_ends_at_one() -> None:
    x = np.array([0.0, 1e-38, 1e-5, 0.5, 9.0, 10.1, 3e38, np.inf, np.nan], np.float32)
    got = run("tanh", x)
    np.testing.assert_array_equal(got[[0, 5, 6, 7, 8]], np.array([0, 1, 1, 1, np.nan], np.float32))
    assert (ulps(got[:5], np.tanh(x[:5].astype(np.float64))) <= 3).all()
    np.testing.assert_array_equal(run("tanh", -x), -got)
    assert np.signbit(run("tanh", -x)[0])


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"])
def test_limits_of_activations(name: str) -> None:
    x = np.array([np.inf, 1e30, 3e38, 0.0, -3e38, -1e30, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(run(name, x), np.array([np.inf, 1e30, 3e38, 0, 0, 0, 0, np.nan], np.float32))


def test_limits_of_sigmoid_softplus_and_relu2() -> None:
    x = np.array([np.inf, 3e38, 0.0, -3e38, -np.inf, np.nan], np.float32)
    np.testing.assert_allclose(run("softplus", x), [np.inf, 3e38, np.log(2), 0, 0, np.nan], rtol=1e-7)
    np.testing.assert_array_equal(run("sigmoid", x), np.array([1, 1, 0.5, 0, 0, np.nan], np.float32))
    np.testing.assert_array_equal(run("relu2", x), np.array([np.inf, np.inf, 0, 0, 0, np.nan], np.float32))


def test_bits_are_the_same_on_every_machine() -> None:
    x = (np.arange(-20_000, 20_000) / 256).astype(np.float32)
    inputs = {name: -np.abs(x) if name.endswith("_negative") else x for name in NAMES}
    results = {name: (run(name, y) + np.float32(0)).tobytes() for name, y in inputs.items()}
    assert {name: hashlib.sha256(bits).hexdigest()[:12] for name, bits in results.items()} == DIGESTS


DIGESTS = {
    "exp": "95a481da789f",
    "exp_negative": "36aabad914d6",
    "exp2_negative": "b9f2e5bd727e",
    "expm1_negative": "c70e5b079476",
    "tanh": "fb9f1ffaa471",
    "silu": "5957c502dfcd",
    "gelu": "8168cd80fa05",
    "gelu_tanh": "f316fa532303",
    "quick_gelu": "a37afdfba688",
    "sigmoid": "c9262261a262",
    "softplus": "0c699252fe8d",
    "relu": "238940f73ba7",
    "relu2": "4618bcb9f158",
}
"""Of results on x86-64 with AVX2, AVX-512 VNNI and plain LLVM vectors, which are equal."""
