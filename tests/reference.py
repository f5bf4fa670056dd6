"""The slow truth: runs a recorded program in float64 numpy, one operation after the other.

What each operation computes is in `quantkit_kernels.interpreter.truth`. Nothing here knows of pages, threads or blocks
(packed tensors are expanded first); engine and kernels are measured against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.formats import ModelSource
from quantkit.models.program import Operation, Program, Value
from quantkit_kernels import blocks
from quantkit_kernels.interpreter.truth import Matrix, quantize


def logits(
    program: Program, source: ModelSource, token_ids: Sequence[int], *, quantize_activations: bool = False
) -> Matrix:
    """Return the logits `[T, columns]` of every token of one fresh sequence.

    Parameters
    ----------
    program : Program
    source : ModelSource
        Its tensors may be of any kind.
    token_ids : sequence of int
    quantize_activations : bool
        Round the inputs of linear maps whose weights are packed to int8, as the packed kernels do.
    """
    return values(program, source, token_ids, quantize_activations=quantize_activations)[program.logits.index]


def values(
    program: Program, source: ModelSource, token_ids: Sequence[int], *, quantize_activations: bool = False
) -> dict[int, NDArray[np.float64]]:
    """Return all values, caches included, by their index; parameters as for `logits`."""
    positions = np.arange(len(token_ids))
    batch = {"ids": np.array(token_ids), "positions": positions, "wanted": positions}
    computed: dict[int, NDArray[np.float64]] = {}
    for operation in program.operations:
        inputs = [computed[value.index] for value in operation.inputs]
        if quantize_activations and operation.name == "linear" and _is_packed(source, operation):
            inputs = [quantize(*inputs)]
        weights = [_weight(source, name) for name in operation.tensors]
        constant = [np.array(operation.constant)] if operation.constant else []
        missing = [None] * (len(operation.spec.weights) - len(weights) if constant else 0)
        read = [batch[name] for name in operation.spec.batch]
        state = _state(operation)
        y = operation.spec.truth(*read, *inputs, *state, *weights, *missing, *constant, **operation.parameters)
        computed[operation.output.index] = y
    return computed


def _state(operation: Operation) -> list[NDArray[np.float32]]:
    """What an operation that keeps a state begins with."""
    if not operation.spec.state or not isinstance(operation.output, Value):
        return []
    state = operation.spec.state({"out_columns": operation.output.columns, **operation.parameters})
    return [np.zeros(state.units * state.floats, np.float32)]


def _is_packed(source: ModelSource, operation: Operation) -> bool:
    return blocks.KINDS[source.tensor(operation.tensors[0]).kind].block_bytes > 0


def _weight(source: ModelSource, name: str) -> Matrix:
    tensor = source.tensor(name)
    return blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape).astype(np.float64)
