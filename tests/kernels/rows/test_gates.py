"""Gated activations against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arrays import address, result, row
from quantkit.models.recorder import ACTIVATIONS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import gates


@jit(entry=True)
def gated(gate, up, out, n, activation):
    gates.gated(gate, up, out, n, activation)


@pytest.mark.parametrize("activation", range(3), ids=ACTIVATIONS)
def test_gated(activation):
    gate, up = np.random.default_rng(activation).standard_normal((2, 53)).astype(np.float32)
    x = gate.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    erf = np.vectorize(math.erf)
    exact = {
        "silu": x / (1 + np.exp(-x)),
        "gelu": x / 2 * (1 + erf(x / np.sqrt(2))),
        "gelu_tanh": x / 2 * (1 + np.tanh(inner)),
    }[ACTIVATIONS[activation]]
    a, b = row(gate), row(up)
    gated(address(a), address(b), address(a), 53, activation)
    np.testing.assert_allclose(result(a, 53), exact * up, rtol=1e-6, atol=1e-9)


def test_codes_are_those_of_the_recorder():
    assert [getattr(gates, name.upper()) for name in ACTIVATIONS] == list(range(len(ACTIVATIONS)))
