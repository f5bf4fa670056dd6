"""How kernels of recurrent layers are run in tests: in chunks and units, between columns that nobody may touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from arrays import UNTOUCHED, address
from quantkit_kernels.interpreter.operations import State
from quantkit_kernels.operands import Rows

Advance = Callable[[list[Rows], int, int, int, int], None]
"""Calls the kernel: rows of the inputs and of the output, address of the state, tokens, first and last unit."""


def advanced(
    advance: Advance,
    inputs: Sequence[NDArray[np.float32]],
    columns: int,
    state: State,
    chunks: Sequence[int],
    cut: int = 0,
) -> NDArray[np.float32]:
    """Return the outputs, `[tokens, columns]`, for a sequence that comes in chunks, units below `cut` first."""
    tokens = len(inputs[0])
    out = np.full((tokens, -(-columns // 16) * 16 + 16), UNTOUCHED, np.float32)
    memory = np.zeros(state.units * state.floats + 16, np.float32)
    memory[-16:] = UNTOUCHED
    arrays, begin = [*map(_padded, inputs), out], 0
    for count in chunks:
        rows = [Rows(address(array[begin:]), array.strides[0]) for array in arrays]
        for first, last in ((0, cut), (cut, state.units)):
            advance(rows, address(memory), count, first, last)
        begin += count
    assert (memory[-16:] == UNTOUCHED).all()
    assert (out[:, columns:] == UNTOUCHED).all()
    return out[:, :columns]


def _padded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows padded to whole lines with NaN."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % 16)), constant_values=np.nan)
