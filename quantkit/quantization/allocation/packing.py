"""Matrices in int4 about as they will be packed, so that what is measured is what they will cost.

Without a text, a matrix is searched for as the conversion does it. With one, it is calibrated for its inputs on a part
of the text, which come from the weights as they are stored. `calibration/` packs later, on all of the text, and lets
matrices make up for those before them; the two need not agree, since only the ratios between matrices decide. But not
all matrices gain alike: an embedding that is the head too is calibrated as the head, and tokens look up what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from quantkit.models.parts import cut
from quantkit.quantization.allocation.units import KIND
from quantkit.quantization.calibration.curvature import curvature_of
from quantkit.quantization.calibration.inputs import importances_without_text
from quantkit.quantization.calibration.layers import pack_matrix, packed_alone
from quantkit.quantization.calibration.passes import Walk, Weights
from quantkit.quantization.calibration.stops import stops_of
from quantkit.quantization.plan import Plan
from quantkit.quantization.report import Progress
from quantkit.tensor import Tensor

HESSIAN_WINDOWS = 8
"""Of the text that is calibrated on: 4,096 tokens."""


def packing_of(
    plan: Plan, names: Collection[str], threads: int, progress: Callable[[Progress], None] | None = None
) -> Callable[[str], Tensor]:
    """Return what packs some matrices to int4, by their names.

    Parameters
    ----------
    plan : Plan
        Has the weights, and the text or importance file that packing goes by.
    names : collection of str
    threads : int
        The result does not depend on it.
    progress : callable, optional
        Called after each matrix that is calibrated, before this returns.
    """
    source, calibrated, importances = plan.source, dict[str, Tensor](), plan.imatrix.importances if plan.imatrix else {}
    if plan.text:
        for name, tensor in _calibrated(plan, names, spread(plan.text.windows, HESSIAN_WINDOWS), threads):
            calibrated[name] = tensor
            if progress:
                progress(Progress(f"packing {name}", len(calibrated), len(names)))
    elif not plan.imatrix:
        importances = importances_without_text(plan.program, source, names, threads)

    def pack(name: str) -> Tensor:
        if name in calibrated:
            return calibrated[name]
        return packed_alone(source, source.tensor(name), name, KIND, threads, importances.get(name)).tensor

    return pack


def spread(texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Take so many windows, or all if there are fewer, evenly from a text."""
    count = min(count, len(texts))
    return [list(texts[(2 * place + 1) * len(texts) // (2 * count)]) for place in range(count)]


def _calibrated(
    plan: Plan, names: Collection[str], windows: Sequence[Sequence[int]], threads: int
) -> Iterator[tuple[str, Tensor]]:
    """Calibrate the matrices of products; experts of a layer share the inputs of all tokens."""
    stops = stops_of(plan.program, names)
    parts = cut(plan.program, [stop.border for stop in stops])
    walk = Walk(Weights(plan.source.config))
    for number, (part, stop) in enumerate(zip(parts, stops, strict=False)):
        walk.weights.tensors |= {name: plan.source.tensor(name) for name in part.tensors}
        walk.run(part, parts[number + 1 :], windows, threads)
        for shared in stop.shared.values():
            curvature = curvature_of(np.ascontiguousarray(walk.rows_of(shared.x)))
            for name in (name for of_expert in shared.names for name in of_expert):
                yield name, pack_matrix(curvature, plan.source, name, KIND, threads).tensor
