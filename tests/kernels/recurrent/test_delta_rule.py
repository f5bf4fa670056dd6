"""The gated delta rule against float64, and against itself: the same bits for any chunks and units, nothing beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from arrays import address
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.interpreter.operations import BLOCK, OPERATIONS
from quantkit_kernels.operands import Rows
from quantkit_kernels.recurrent import delta_rule
from quantkit_kernels.recurrent.delta_rule import DeltaRule
from recurrent_layers import advanced

TOLERANCE = 2e-6
"""Of sums over a state's rows and over tokens, relative to the largest output."""
TOKENS = 45


class Shape(NamedTuple):
    """Sizes of a layer."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int


SHAPES = [
    Shape(2, 4, 128, 128),
    Shape(1, 2, 96, 192),
    Shape(1, 3, 24, 20),  # the last columns of a head are no whole line
    Shape(2, 2, 16, 40),
    Shape(3, 6, 7, 5),
    Shape(5, 5, 1, 1),
]


@jit(entry=True)
def advance(layer, x, a, b, out, state, count, first, last):
    delta_rule.delta_rule(layer, x, a, b, out, state, count, first, last)


class Layer:
    """Random inputs and weights of a layer, and what it makes of them."""

    def __init__(self, shape: Shape, *, factor: float = 1.0, speed: float = 0.0) -> None:
        rng = np.random.default_rng(shape.key_dim)
        self.shape, self.factor = shape, factor
        self.columns = shape.value_heads * shape.value_dim
        keys = shape.key_heads * shape.key_dim
        self.x = rng.standard_normal((TOKENS, 2 * keys + self.columns)).astype(np.float32)
        self.a, self.b = (2 * rng.standard_normal((2, TOKENS, shape.value_heads))).astype(np.float32)
        self.weights = rng.standard_normal((2, shape.value_heads)).astype(np.float32) + np.float32(speed)
        self.layer = DeltaRule(*shape, factor, *map(address, self.weights))

    def exact(self) -> NDArray[np.float64]:
        state = np.zeros(self.columns * self.shape.key_dim, np.float32)
        x, a, b = (x.astype(np.float64) for x in (self.x, self.a, self.b))
        weights = self.weights.astype(np.float64)
        return truth.delta_rule(x, a, b, state, *weights, **self.shape._asdict(), factor=self.factor)

    def run(self, chunks: Sequence[int] = (TOKENS,), cut: int = 0) -> NDArray[np.float32]:
        """Return the outputs for a sequence that comes in chunks, units below `cut` first."""
        keep = OPERATIONS["delta_rule"].state
        assert keep is not None
        state = keep(self.shape._asdict())

        def call(rows: list[Rows], memory: int, count: int, first: int, last: int) -> None:
            advance(self.layer, *rows, memory, count, first, last)

        return advanced(call, (self.x, self.a, self.b), self.columns, state, chunks, cut)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_delta_rule(shape: Shape, factor: float) -> None:
    layer = Layer(shape, factor=factor)
    exact = layer.exact()
    np.testing.assert_allclose(layer.run(), exact, atol=TOLERANCE * np.abs(exact).max(), rtol=0)


@pytest.mark.parametrize("speed", [-20.0, 20.0])
def test_states_that_keep_everything_and_nothing(speed: float) -> None:
    layer = Layer(SHAPES[0], speed=speed)
    exact = layer.exact()
    np.testing.assert_allclose(layer.run(), exact, atol=TOLERANCE * np.abs(exact).max(), rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_and_units_change_no_bit(shape: Shape) -> None:
    layer = Layer(shape)
    whole = layer.run()
    assert layer.run([1] * TOKENS, cut=1).tobytes() == whole.tobytes()
    assert layer.run([BLOCK, BLOCK - 3, 2 * BLOCK + 5, 1, TOKENS - 4 * BLOCK - 3], cut=2).tobytes() == whole.tobytes()
