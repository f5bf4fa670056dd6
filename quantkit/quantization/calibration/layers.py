"""Calibration of a whole model: its program runs over a text part by part, each packed before the next one runs.

So the inputs that a weight is calibrated with are those which the packed weights before it, and the int8 activations of
the engine, make of the text. A reference runs beside it, whose weights are of int8: what it has more, or
less, a matrix makes up for (`drift.py`). Memory holds the values between two parts of both, of all tokens, and the
weights and the Hessian of those matrices that share an input. `stops.py` says where the program is cut, `passes.py`
runs its parts, `curvature.py` packs a matrix, `memory.py` says how much all that is.

Nothing is tuned end to end afterwards: 60 steps of Adam on the scales, mins and norms of SmolLM2-135M in 90.5 MB, each
towards the predictions of its 16-bit weights for 1,024 tokens, left its divergence where it was (0.0114 before, 0.0115
after, with activations in f32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.source import ModelSource
from quantkit.models.parts import cut
from quantkit.models.program import Program
from quantkit.quantization.calibration import CALIBRATED, REFERENCE_KIND
from quantkit.quantization.calibration.curvature import Curvature, curvature_of, output_error_of, pack_under
from quantkit.quantization.calibration.drift import LEAST_ROWS, Drift, SharedInputs, lacking_of
from quantkit.quantization.calibration.passes import Rows, Walk, Weights, rows_of_experts
from quantkit.quantization.calibration.stops import Shared, fitted_names, stops_of
from quantkit.quantization.encode import dequantize, encode_tensor, quantize
from quantkit.quantization.kept_codes import NEGLIGIBLE
from quantkit.tensor import Tensor, TensorSpec


class Packed(NamedTuple):
    """A tensor as it is to be written.

    Attributes
    ----------
    name : str
    tensor : Tensor
    error : float
        Squared error of its weights, relative to their sum of squares.
    output_error : float, optional
        The same of what it makes of its inputs in the text, where it was calibrated.
    kept_codes : float, optional
        The share of its rows that keep the codes of a source that has quantized them before.
    """

    name: str
    tensor: Tensor
    error: float
    output_error: float | None = None
    kept_codes: float | None = None


def pack_calibrated(
    program: Program,
    source: ModelSource,
    specs: Mapping[str, TensorSpec],
    windows: Sequence[Sequence[int]],
    threads: int,
    finished: Callable[[str], Packed | None] = lambda name: None,
) -> Iterator[Packed]:
    """Pack the tensors of a model, those of `CALIBRATED` kinds under the Hessian of their inputs.

    Layers of int8 make up for what those before them lost, too.

    Parameters
    ----------
    program : Program
    source : ModelSource
    specs : Mapping of str to TensorSpec
        Kind of each tensor.
    windows : sequence of sequence of int
        The text: token ids, as many in each.
    threads : int
    finished : callable, optional
        A tensor that was packed before, with the same text, by its name; None where it was not.

    Yields
    ------
    Packed
        Each tensor, once, in the order of use.
    """

    def pack(name: str) -> Packed:
        return finished(name) or _pack(source, specs[name], threads)

    stops = stops_of(program, fitted_names(specs))
    parts = cut(program, [stop.border for stop in stops])
    path, reference = Walk(Weights(source.config)), Walk(Weights(source.config))
    # A table that is read before it is calibrated, as an embedding that is the head too, is packed by itself at first.
    left, calibrated = dict.fromkeys(specs), {name for stop in stops for name in stop.names}
    for number, (part, stop) in enumerate(zip(parts, stops, strict=False)):
        for name in part.tensors:
            if name not in path.weights.tensors:
                packed = _pack(source, specs[name], threads) if name in calibrated else pack(name)
                path.weights.tensors[name] = packed.tensor
                if name not in calibrated:
                    left.pop(name)
                    yield packed
            if name not in reference.weights.tensors:
                apart = specs[name].kind in CALIBRATED or name in calibrated
                reference.weights.tensors[name] = (
                    _reference(source, name, threads) if apart else path.weights.tensors[name]
                )
        for each in (path, reference):
            each.run(part, parts[number + 1 :], windows, threads)
        for shared in stop.shared.values():
            for packed in _calibrate(shared, path, reference, len(windows[0]), source, specs, threads, finished):
                path.weights.tensors[packed.name] = packed.tensor
                left.pop(packed.name)
                yield packed
    yield from map(pack, left)


def _reference(source: ModelSource, name: str, threads: int) -> Tensor:
    """A tensor as the reference has it where the packed model has another one: of int8 by itself."""
    return packed_alone(source, source.tensor(name, copy=True), name, REFERENCE_KIND, threads).tensor


def _pack(source: ModelSource, spec: TensorSpec, threads: int) -> Packed:
    return packed_alone(source, source.tensor(spec.name, copy=True), spec.name, spec.kind, threads)


def packed_alone(
    source: ModelSource,
    weights: Tensor,
    name: str,
    kind: str,
    threads: int,
    importance: NDArray[np.float32] | None = None,
) -> Packed:
    """Pack a tensor by itself, with the source's codes where it has some; `importance` as of `encode`."""
    scales = source.group_scales(name, slice(None)) if len(weights.shape) == 2 else None
    label = f"{source.file_of(name)}: tensor {name!r}"
    found = encode_tensor(weights, kind, scales=scales, importance=importance, label=label, threads=threads)
    kept = None if found.kept is None else found.kept / len(found.data)
    tensor = Tensor(kind, weights.shape, found.data, found.row_scales)
    return Packed(name, tensor, found.error / (found.squares or 1.0), kept_codes=kept)


def _calibrate(
    shared: Shared,
    path: Walk,
    reference: Walk,
    length: int,
    source: ModelSource,
    specs: Mapping[str, TensorSpec],
    threads: int,
    finished: Callable[[str], Packed | None],
) -> Iterator[Packed]:
    """Pack the weights that share inputs; `length` is a window's."""
    inputs = rows_of_experts(shared, path.rows, length)
    for names, rows, wanted in zip(shared.names, inputs, _wanted(shared, path, reference, length), strict=True):
        found = {name: finished(name) for name in names}
        curvature = None if all(found.values()) else curvature_of(rows)
        drifts: dict[str, Drift] = {}
        if curvature and wanted is not None and len(rows) >= LEAST_ROWS * rows.shape[1]:
            narrow = sum(source.spec(name).shape[0] for name in names) < rows.shape[1]
            of = SharedInputs(curvature.of_columns(rows.shape[1]), rows, lacking_of(rows, wanted), narrow=narrow)
            for name in names:
                value = shared.added_to.get(name)
                added = None if value is None else lacking_of(path.rows_of(value), reference.rows_of(value))
                drifts[name] = of.drift(partial(_floats, source, name), added)
        for name, before in found.items():
            yield before or pack_matrix(curvature, source, name, specs[name].kind, threads, drifts.get(name))


def _floats(source: ModelSource, name: str) -> Rows:
    return np.concatenate(list(dequantize(source.tensor(name, copy=True))))


def _wanted(shared: Shared, path: Walk, reference: Walk, length: int) -> Iterable[Rows | None]:
    """The inputs in the reference of the tokens that reach each expert; None where it may have sent them to others."""
    if shared.x.per_token > 1:
        return [None] * len(shared.names)
    routed = {} if shared.routing is None else {shared.routing.index: path.rows[shared.routing.index]}
    return rows_of_experts(shared, {**reference.rows, **routed}, length)


def pack_matrix(
    curvature: Curvature | None,
    source: ModelSource,
    name: str,
    kind: str,
    threads: int,
    drift: Drift | None = None,
) -> Packed:
    """Pack a matrix to a `CALIBRATED` kind under the Hessian of its inputs, if there were any.

    One of another kind makes up for a drift.
    """
    weights = source.tensor(name, copy=True)
    alone = packed_alone(source, weights, name, kind, threads)
    kept_codes = None if alone.kept_codes is None else 0.0
    if kind not in CALIBRATED:
        if drift is None or alone.error <= NEGLIGIBLE[kind]:
            return alone
        return Packed(name, *_made_up(source, name, kind, threads, drift), None, kept_codes)
    if curvature is None:
        return alone
    if alone.error <= NEGLIGIBLE[kind]:  # with the source's codes; no others come as near
        return alone._replace(output_error=output_error_of(curvature, weights, alone.tensor))
    tensor, error, output_error = pack_under(curvature, weights, alone.tensor, threads, drift)
    return Packed(name, tensor, error, output_error, kept_codes)


def _made_up(source: ModelSource, name: str, kind: str, threads: int, drift: Drift) -> tuple[Tensor, float]:
    """A matrix that makes up for a drift, packed by itself; and its error, relative as of `Packed`."""
    stored = _floats(source, name)
    target = Tensor("f32", stored.shape, drift.target(stored, slice(None)))
    tensor, _ = quantize(target, kind, label=f"{source.file_of(name)}: tensor {name!r}", threads=threads)
    missed = np.concatenate(list(dequantize(tensor))) - stored
    return tensor, float(np.vdot(missed, missed)) / (float(np.vdot(stored, stored)) or 1.0)
