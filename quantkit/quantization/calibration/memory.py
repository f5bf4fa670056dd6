"""How much memory calibration needs, known from a program and the length of the text alone.

Two things are large: the values between two parts of the program, of all tokens, in the packed model and its
reference (`layers.py`), and the Hessian of the widest input with its factor (`curvature.py`). Nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from quantkit.models.parts import cut
from quantkit.models.program import Program, Value
from quantkit.quantization.calibration import CALIBRATED, REFERENCE_KIND
from quantkit.quantization.calibration.stops import Stop, fitted_names, stops_of
from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import COLUMNS, nbytes

HESSIAN_BYTES = 40
"""Of each entry of a Hessian: itself and a chunk's part, f32, and what its factor is made of, f64, or a drift, f32."""
WEIGHT_BYTES = 16
"""Of each weight of the matrix that is packed: as it is read and stored, in f32, and its blocks."""
MODELS = 2
"""The packed one and its reference."""
MEASURED_TOKENS = 256
"""Tokens by which a model says how large its inputs are, without a text."""
PASS_TOKENS = 256
"""Those of the engine: the values inside of a part are in memory for so many tokens (a test compares)."""


def calibration_memory(program: Program, specs: Mapping[str, TensorSpec], tokens: int) -> int:
    """Return about how many bytes calibration needs at once, beside those of the process itself, at most.

    Parameters
    ----------
    program : Program
    specs : Mapping of str to TensorSpec
        Kind of each tensor.
    tokens : int
        Of the text.
    """
    stops = stops_of(program, fitted_names(specs))
    parts = cut(program, [stop.border for stop in stops])
    most = 0
    for number, (part, stop) in enumerate(zip(parts, stops, strict=False)):
        held = {name for each in parts[number : number + 2] for name in each.tensors}
        most = max(
            most,
            MODELS * _rows(_alive(parts, number), tokens)
            + _rows(_inside(part), PASS_TOKENS)
            + sum(_held(specs[name]) for name in held)
            + _search(stop, specs, tokens),
        )
    return most


def _held(spec: TensorSpec) -> int:
    """Bytes of a tensor, and of what stands for it in the reference if that is something else."""
    other = nbytes(REFERENCE_KIND, spec.shape) if spec.kind in (*CALIBRATED, REFERENCE_KIND) else 0
    return nbytes(spec.kind, spec.shape) + other


def measuring_memory(program: Program, names: Collection[str], tokens: int = MEASURED_TOKENS) -> int:
    """Return about how many bytes measuring the inputs of matrices needs at once, at most.

    Parameters
    ----------
    program : Program
    names : collection of str
        The matrices.
    tokens : int
        Of the text; by default, as many as there are without one.
    """
    stops = stops_of(program, names)
    parts = cut(program, [stop.border for stop in stops])[:-1]
    tables = {each.tensors[0] for each in program.operations if each.name == "embed"}
    most = 0
    for number, part in enumerate(parts):
        read = (spec for name, spec in part.tensors.items() if name not in tables)
        weights = [4 * it.weights if len(it.shape) != 2 else nbytes("int8", it.shape) for it in read]
        looked_up = sum(4 * tokens * program.tensors[name].shape[1] for name in tables & part.tensors.keys())
        rows = _rows(_alive(parts, number), tokens)
        # A matrix is there a second time while it is put together; the squares of rows are f64.
        held = sum(weights) + max(weights, default=0) + looked_up
        most = max(most, 3 * rows + _rows(_inside(part), min(tokens, PASS_TOKENS)) + held)
    return most


def _alive(parts: Sequence[Program], number: int) -> set[Value]:
    """The values of all tokens that are in memory when a part has run: its own, and those that are still to be read."""
    made = {value.index for each in parts[: number + 1] for value in each.outputs}
    later = {value for each in parts[number:] for value in each.inputs if value.index in made}
    return {*later, *parts[number].outputs}


def _inside(part: Program) -> Iterator[Value]:
    """The values that a part computes for a pass."""
    return (each.output for each in part.operations if isinstance(each.output, Value))


def _rows(values: Iterable[Value], tokens: int) -> int:
    return sum(4 * -(-value.columns // 16) * 16 * value.per_token * tokens for value in values)


def _search(stop: Stop, specs: Mapping[str, TensorSpec], tokens: int) -> int:
    """Bytes that the largest matrix at a stop is packed in, with its Hessian, and the rows of an expert, copied."""
    largest = max(specs[name].weights for name in stop.names)
    widest = max(-(-shared.x.columns // COLUMNS) * COLUMNS for shared in stop.shared.values())
    copied = max((MODELS * _rows([it.x], tokens) for it in stop.shared.values() if it.routing), default=0)
    return WEIGHT_BYTES * largest + HESSIAN_BYTES * widest**2 + copied
