"""Mamba-2's layer against float64, and against itself: the same bits for any chunks and units, nothing beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from arrays import address
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.interpreter.operations import OPERATIONS
from quantkit_kernels.operands import Rows
from quantkit_kernels.recurrent import ssd
from quantkit_kernels.recurrent.ssd import Ssd
from recurrent_layers import advanced

TOLERANCE = 2e-6
"""Of sums over a state's columns and over tokens, relative to the largest output."""
TOKENS = 45


class Shape(NamedTuple):
    """Sizes of a layer."""

    heads: int
    head_dim: int
    groups: int
    state_size: int


SHAPES = [
    Shape(4, 64, 1, 128),
    Shape(4, 80, 2, 16),  # the last unit of a head is half a unit
    Shape(6, 5, 3, 7),
    Shape(2, 48, 2, 8),
    Shape(3, 33, 1, 5),
    Shape(14, 1, 1, 1),  # a row as long as its padding
]


@jit(entry=True)
def advance(layer, x, dt, out, state, tokens, first, last):
    ssd.ssd(layer, x, dt, out, state, tokens, first, last)


class Layer:
    """Random inputs and weights of a layer, and what it makes of them."""

    def __init__(self, shape: Shape, limits: tuple[float, float] = (0.0, np.inf)) -> None:
        rng = np.random.default_rng(shape.head_dim)
        self.shape, self.limits = shape, limits
        self.columns = shape.heads * shape.head_dim
        self.x = rng.standard_normal((TOKENS, self.columns + 2 * shape.groups * shape.state_size)).astype(np.float32)
        self.dt = (2 * rng.standard_normal((TOKENS, shape.heads))).astype(np.float32)
        self.weights = rng.standard_normal((3, shape.heads)).astype(np.float32)
        a_log, dt_bias, skip = map(address, self.weights)
        self.layer = Ssd(*shape, a_log, dt_bias, skip, *limits)

    def exact(self) -> NDArray[np.float64]:
        shape, weights = self.shape, self.weights.astype(np.float64)
        state = np.zeros(self.columns * shape.state_size, np.float32)
        inputs = self.x.astype(np.float64), self.dt.astype(np.float64)
        return truth.ssd(*inputs, state, *weights, **shape._asdict(), dt_min=self.limits[0], dt_max=self.limits[1])

    def run(self, chunks: Sequence[int] = (TOKENS,), cut: int = 0) -> NDArray[np.float32]:
        """Return the outputs for a sequence that comes in chunks, units below `cut` first."""
        keep = OPERATIONS["ssd"].state
        assert keep is not None
        state = keep(self.shape._asdict())

        def call(rows: list[Rows], memory: int, count: int, first: int, last: int) -> None:
            advance(self.layer, *rows, memory, count, first, last)

        return advanced(call, (self.x, self.dt), self.columns, state, chunks, cut)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("limits", [(0.0, np.inf), (0.3, 1.5)])
def test_ssd(shape: Shape, limits: tuple[float, float]) -> None:
    layer = Layer(shape, limits)
    exact = layer.exact()
    np.testing.assert_allclose(layer.run(), exact, atol=TOLERANCE * np.abs(exact).max(), rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_and_units_change_no_bit(shape: Shape) -> None:
    layer = Layer(shape)
    whole = layer.run()
    assert layer.run([1] * TOKENS, cut=1).tobytes() == whole.tobytes()
    assert layer.run([16, 7, 17, 1, 4], cut=2).tobytes() == whole.tobytes()
