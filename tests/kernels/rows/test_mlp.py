"""Activations of a row, gated and not, against float64: any number of columns, in place, with padding of NaN."""

from __future__ import annotations

import numpy as np
import pytest

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.interpreter.operations import ACTIVATIONS
from quantkit_kernels.rows import mlp


@jit(entry=True)
def activate(x, out, n, activation):
    mlp.activate(x, out, n, activation)


@jit(entry=True)
def gated(gate, up, out, n, activation):
    mlp.gated(gate, up, out, n, activation)


@jit(entry=True)
def gated_clamped(gate, up, out, n, alpha, limit, offset):
    mlp.gated_clamped(gate, up, out, n, alpha, limit, offset)


@jit(entry=True)
def xielu(x, numbers, out, n):
    mlp.xielu(x, out, n, mlp.Xielu(numbers, numbers + 4, numbers + 8, numbers + 12))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("columns", [53, 16, 1])
def test_activations(name: str, columns: int) -> None:
    code = ACTIVATIONS.index(name)
    gate, up = np.random.default_rng(code).standard_normal((2, columns)).astype(np.float32)
    exact = truth.ACTIVATIONS[name](gate.astype(np.float64))
    a, b = row(gate), row(up)
    gated(address(a), address(b), address(b), columns, code)
    np.testing.assert_allclose(result(b, columns), exact * up, rtol=1e-6, atol=1e-9)
    activate(address(a), address(a), columns, code)
    np.testing.assert_allclose(result(a, columns), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("alpha", "limit", "offset"), [(1.702, 7.0, 1.0), (1.0, 0.5, 0.0)])
def test_gated_clamped(alpha: float, limit: float, offset: float) -> None:
    gate, up = (np.random.default_rng(7).standard_normal((2, 53)) * 2 * limit).astype(np.float32)
    a, b = row(gate), row(up)
    gated_clamped(address(a), address(b), address(a), 53, *map(np.float32, (alpha, limit, offset)))
    exact = truth.gated_clamped(
        gate.astype(np.float64), up.astype(np.float64), alpha=float(np.float32(alpha)), limit=limit, offset=offset
    )
    np.testing.assert_allclose(result(a, 53), exact, rtol=2e-6, atol=1e-9)


def test_codes_are_those_of_the_table() -> None:
    assert [getattr(mlp, name.upper()) for name in ACTIVATIONS] == list(range(len(ACTIVATIONS)))


@pytest.mark.parametrize("numbers", [(0.2, -1.05, 0.5, -1e-6), (-9.0, 30.0, 0.5, -1e-6), (0.0, 0.0, 1.5, -0.1)])
def test_xielu(numbers: tuple[float, ...]) -> None:
    x = np.concatenate([np.linspace(-30, 30, 2001), np.linspace(-1e-3, 1e-3, 300), [0.0, -1e-6, -1e-9, -300.0, 1e4]])
    x = x.astype(np.float32)
    stored, a = np.array(numbers, np.float32), row(x)
    xielu(address(a), address(stored), address(a), x.size)
    exact = truth.xielu(x.astype(np.float64), *stored.astype(np.float64))
    # Its two terms may cancel each other.
    size = np.abs(x) * (numbers[2] + 0.5 + np.logaddexp(0, numbers[1]))
    assert (np.abs(result(a, x.size) - exact) <= 3e-7 * (size + np.abs(exact))).all()


def test_xielu_of_nan_is_nan() -> None:
    a, stored = row([np.nan]), np.zeros(4, np.float32)
    xielu(address(a), address(stored), address(a), 1)
    assert np.isnan(result(a, 1)).all()
