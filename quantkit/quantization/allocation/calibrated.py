"""What calibration will leave of the cost of a matrix in int4, told from its inputs before anything is packed.

Rounding errors that meet inputs `x` cost the trace of their Hessian `H = X^T X`. GPTQ lets later columns make up for
earlier ones, and what is left is the trace of `D`, where `H = U^T D U` and `U` is triangular with ones on its diagonal
(Chee et al. 2023, "QuIP", theorem 1). Inputs come from the weights as they are stored, on a part of the text.
`calibration/` packs later; the two need not agree, since only the ratios between matrices decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from quantkit.formats.source import ModelSource
from quantkit.models.parts import cut
from quantkit.models.program import Program
from quantkit.quantization.calibration.curvature import curvature_of
from quantkit.quantization.calibration.passes import Rows, Walk, Weights
from quantkit.quantization.calibration.stops import stops_of

ROWS_FOR_COLUMN = 4
"""Rows of inputs for each column whose Hessian is taken; of wider inputs, some columns are."""


def shares_left(
    program: Program, source: ModelSource, names: Collection[str], windows: Sequence[Sequence[int]], threads: int
) -> Iterator[tuple[str, float]]:
    """Yield each matrix and the share of its cost that calibration leaves.

    Parameters
    ----------
    program : Program
    source : ModelSource
    names : collection of str
        The matrices. Experts of a layer share the inputs of all tokens.
    windows : sequence of sequence of int
        Token ids, as many in each.
    threads : int
    """
    stops = stops_of(program, names)
    parts = cut(program, [stop.border for stop in stops])
    walk = Walk(Weights(source.config))
    for number, (part, stop) in enumerate(zip(parts, stops, strict=False)):
        walk.weights.tensors |= {name: source.tensor(name) for name in part.tensors}
        walk.run(part, parts[number + 1 :], windows, threads)
        for shared in stop.shared.values():
            left = _share_left(walk.rows_of(shared.x))
            yield from ((name, left) for of_expert in shared.names for name in of_expert)


def _share_left(inputs: Rows) -> float:
    """The trace of D over that of H, for inputs `[rows, columns]`; 1 where they are all zeros."""
    step = -(-ROWS_FOR_COLUMN * inputs.shape[1] // len(inputs))
    curvature = curvature_of(np.ascontiguousarray(inputs[:, ::step]))
    if curvature is None:
        return 1.0
    kept = np.square(np.diagonal(curvature.lower), dtype=np.float64)
    return float(kept.sum() / np.diagonal(curvature.hessian).sum(dtype=np.float64))
