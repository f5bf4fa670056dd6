"""Parts of a program over the windows of a text: what they make of it, and which rows of that reach which weights.

Memory holds the values between two parts, of all tokens. `stops.py` says where a program is cut; `layers.py` packs the
weights of a part before the next one runs, `inputs.py` measures what reaches them, `allocation/` what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.model import PASS_TOKENS, Model, empty_rows
from quantkit.models.program import Program, Value
from quantkit.quantization.calibration.stops import Shared
from quantkit.tensor import Tensor

Rows = NDArray[np.float32]


@dataclass
class Weights:
    """What a part reads: the packed tensors of a model, as far as it has got."""

    config: Mapping[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass
class Walk:
    """A model on its way through a text: the weights that it has, and the values that its next parts read.

    Attributes
    ----------
    weights : Weights
    rows : dict of int to ndarray
        Index of a value -> its rows, f32, those of all windows.
    """

    weights: Weights
    rows: dict[int, Rows] = field(default_factory=dict)

    def run(self, part: Program, later: Sequence[Program], windows: Sequence[Sequence[int]], threads: int) -> None:
        """Run a part, and drop what later ones do not read."""
        run_part(part, self.weights, self.rows, windows, threads)
        values = {value.index for each in later for value in each.inputs}
        names = {name for each in later for name in each.tensors}
        self.rows = {index: rows for index, rows in self.rows.items() if index in values}
        self.weights.tensors = {name: tensor for name, tensor in self.weights.tensors.items() if name in names}

    def rows_of(self, value: Value) -> Rows:
        """The rows of a value, without padding."""
        return self.rows[value.index][:, : value.columns]


def run_part(
    part: Program, weights: Weights, rows: dict[int, Rows], windows: Sequence[Sequence[int]], threads: int
) -> None:
    """Compute the values that a part leaves, of all windows, and add them to `rows`."""
    length = len(windows[0])
    model = Model(part, weights, context_length=length, threads=threads)
    rows |= {value.index: empty_rows(value, length * len(windows)) for value in part.outputs}
    for number, window in enumerate(windows):
        inputs, outputs = (
            [_of_window(rows[value.index], value, number, length) for value in values]
            for values in (part.inputs, part.outputs)
        )
        model.compute(window, inputs, outputs)
    model.close()


def _of_window(rows: Rows, value: Value, number: int, length: int) -> Rows:
    size = length * value.per_token
    return rows[number * size : (number + 1) * size]


def rows_of_experts(shared: Shared, rows: Mapping[int, Rows], length: int) -> Iterator[Rows]:
    """Yield the rows that reach each expert; those that all tokens have, if there are none. `length` is a window's."""
    x = rows[shared.x.index][:, : shared.x.columns]
    if shared.routing is None:
        yield x
        return
    top_k = shared.routing.columns // 2
    chosen = rows[shared.routing.index][:, :top_k].astype(np.int64)
    if shared.x.per_token == 1:
        for expert in range(len(shared.names)):
            yield x[(chosen == expert).any(axis=1)]
        return
    # As the engine leaves them: those of the tokens of a pass are sorted by expert.
    by_window = chosen.reshape(-1, length, top_k)
    expert_of_row = np.concatenate(
        [
            np.sort(window[first : first + PASS_TOKENS].ravel())
            for window in by_window
            for first in range(0, length, PASS_TOKENS)
        ]
    )
    for expert in range(len(shared.names)):
        yield x[expert_of_row == expert]
