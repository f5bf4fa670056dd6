"""What each step from a checkpoint to its packed model costs: the weights, the KV cache, the activations.

Four models read the same text, each with one more loss than the one before. Small losses are measured in f32, where
nothing else is rounded; the activations of packed weights are rounded to int8, so they come last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.engine.model import Model
from quantkit.engine.opening import open_model
from quantkit.errors import OptionError
from quantkit.evaluation.scores import Pair
from quantkit.formats import ModelSource
from quantkit.formats.packed import is_packed
from quantkit.generation.loading import load_model, model_of
from quantkit.quantization.encode import dequantize
from quantkit.tensor import Tensor, TensorSpec

PARTS = {
    "weights": Pair(0, 1),
    "KV cache": Pair(1, 2),
    "activations": Pair(2, 3),
    "together": Pair(0, 3),
}
"""Name of a loss -> what is compared, of the models that `open_parts` returns."""


def open_parts(
    model: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    threads: int | None = None,
    context: int | None = None,
    kv_dtype: str = "int16",
) -> list[Model]:
    """Open a packed model in steps.

    Returns
    -------
    list of Model
        The reference, with a KV cache of f32; the weights of the packed model in f32 arithmetic, with a KV cache of
        f32; the same with that of `kv_dtype`; the packed model as it runs. The weights in f32 take four bytes each.

    Raises
    ------
    OptionError
        When the model is not packed.
    QuantkitError
        As of `load_model`.
    """
    if not is_packed(model):
        raise OptionError(f"{model}: is not packed: nothing of it is rounded but the KV cache")
    weights = _Dequantized(open_model(model))
    return [
        load_model(reference, threads=threads, context=context, kv_dtype="f32"),
        *(model_of(weights, threads=threads, context=context, kv_dtype=kind) for kind in ("f32", kv_dtype)),
        load_model(model, threads=threads, context=context, kv_dtype=kv_dtype),
    ]


class _Dequantized(ModelSource):
    """A packed model with its weights in f32, as they are used: each is unpacked when it is first asked for."""

    def __init__(self, source: ModelSource) -> None:
        self.path, self.error, self.metadata = source.path, source.error, source.metadata
        self._source = source
        self._unpacked = cache(self._unpack)

    @property
    def config(self) -> Mapping[str, Any]:
        return self._source.config

    @property
    def files(self) -> Mapping[str, bytes | Path]:
        return self._source.files

    @property
    def names(self) -> tuple[str, ...]:
        return self._source.names

    @property
    def nbytes(self) -> int:
        return sum(4 * self.spec(name).weights for name in self.names)

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(name, self._source.spec(name).shape, kind="f32")

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        return self._unpacked(name)

    def file_of(self, name: str) -> Path:
        return self._source.file_of(name)

    def _evidence(self) -> Iterator[bytes]:
        yield self._source.identity().encode()

    def _unpack(self, name: str) -> Tensor:
        packed = self._source.tensor(name)
        return Tensor("f32", packed.shape, np.concatenate(list(dequantize(packed))).reshape(packed.shape))
