"""The slow truth: runs a recorded program in float64 numpy, one operation after the other.

Every operation is what `quantkit.models.recorder.Recorder` says it is, written as plainly as it can be. It knows
nothing of pages, threads or blocks (packed tensors are expanded first); engine and kernels are measured against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.formats import ModelSource
from quantkit.models.recorder import Operation, Program
from quantkit_kernels import blocks

Matrix = NDArray[np.float64]

GROUP = 32
"""Activations that share a scale where weights are packed."""


def logits(
    program: Program, source: ModelSource, token_ids: Sequence[int], *, quantize_activations: bool = False
) -> Matrix:
    """Return the logits `[T, vocab_size]` of every token of one fresh sequence.

    Parameters
    ----------
    program : Program
    source : ModelSource
        Its tensors may be of any kind.
    token_ids : sequence of int
    quantize_activations : bool
        Round the inputs of linear maps whose weights are packed to int8, as the packed kernels do.
    """
    machine = _Machine(source, np.array(token_ids), quantize_activations)
    values: list[Matrix] = []
    for operation in program.operations:
        compute = _OPERATIONS[operation.name]
        inputs = [values[value.index] for value in operation.inputs]
        values.append(compute(machine, operation, *inputs))
        assert values[-1].shape == (len(token_ids), operation.output.columns), operation
    return values[-1]


def quantized(x: Matrix) -> Matrix:
    """Round each group of 32 columns to `d * q`, `d = absmax / 127`, `q` a whole number, half to even."""
    tokens, columns = x.shape
    groups = np.pad(x, ((0, 0), (0, -columns % GROUP))).reshape(tokens, -1, GROUP)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    codes = np.round(np.divide(groups, step, out=np.zeros_like(groups), where=step > 0))
    return (codes * step).reshape(tokens, -1)[:, :columns]


class _Machine:
    def __init__(self, source: ModelSource, token_ids: NDArray[np.int64], quantize_activations: bool) -> None:
        self.source, self.token_ids, self.quantize_activations = source, token_ids, quantize_activations

    def weight(self, name: str) -> Matrix:
        tensor = self.source.tensor(name)
        return blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape).astype(np.float64)

    def embed(self, operation: Operation) -> Matrix:
        return self.weight(operation.tensors[0])[self.token_ids]

    def scale(self, operation: Operation, x: Matrix) -> Matrix:
        return x * operation.parameters["factor"]

    def add(self, operation: Operation, a: Matrix, b: Matrix) -> Matrix:
        return a + b

    def rms_norm(self, operation: Operation, x: Matrix) -> Matrix:
        runs = _heads(x, operation.parameters["size"])
        mean_square = np.mean(runs**2, axis=-1, keepdims=True)
        weight = self.weight(operation.tensors[0]) + operation.parameters["offset"]
        return (runs / np.sqrt(mean_square + operation.parameters["eps"]) * weight).reshape(x.shape)

    def linear(self, operation: Operation, x: Matrix) -> Matrix:
        weight, *bias = operation.tensors
        if self.quantize_activations and self.source.tensor(weight).kind in ("int4", "int8"):
            x = quantized(x)
        y = x @ self.weight(weight).T
        return y + self.weight(bias[0]) if bias else y

    def rotation(self, operation: Operation) -> Matrix:
        frequencies = np.array(operation.parameters["inverse_frequencies"])
        angles = np.arange(len(self.token_ids))[:, None] * frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * operation.parameters["factor"]

    def rope(self, operation: Operation, x: Matrix, rotation: Matrix) -> Matrix:
        cosines, sines = np.split(rotation[:, None, :], 2, axis=-1)
        left, right = np.split(_heads(x, rotation.shape[1]), 2, axis=-1)
        turned = [left * cosines - right * sines, right * cosines + left * sines]
        return np.concatenate(turned, axis=-1).reshape(x.shape)

    def attention(self, operation: Operation, q: Matrix, k: Matrix, v: Matrix) -> Matrix:
        head_dim, window = operation.parameters["head_dim"], operation.parameters["window"]
        queries, keys, values = _heads(q, head_dim), _heads(k, head_dim), _heads(v, head_dim)
        shared = queries.shape[1] // keys.shape[1]
        y = np.zeros_like(queries)
        for token in range(len(q)):
            first = max(0, token + 1 - window) if window else 0
            for head in range(queries.shape[1]):
                seen = keys[first : token + 1, head // shared]
                weights = _softmax(seen @ queries[token, head] * operation.parameters["scale"])
                y[token, head] = weights @ values[first : token + 1, head // shared]
        return y.reshape(q.shape)

    def gated(self, operation: Operation, gate: Matrix, up: Matrix) -> Matrix:
        return _ACTIVATIONS[operation.parameters["activation"]](gate) * up

    def select(self, operation: Operation, x: Matrix) -> Matrix:
        return x


_OPERATIONS: dict[str, Callable[..., Matrix]] = {
    name: method for name, method in vars(_Machine).items() if not name.startswith("_") and name != "weight"
}

_ACTIVATIONS: dict[str, Callable[[Matrix], Matrix]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def _heads(x: Matrix, head_dim: int) -> NDArray[Any]:
    return x.reshape(len(x), -1, head_dim)


def _softmax(scores: Matrix) -> Matrix:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
