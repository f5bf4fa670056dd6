"""A model whose tensors are in memory, for tests that are not about files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantkit.formats import ModelSource
from quantkit.tensor import Tensor, TensorSpec

NO_CONFIG: Mapping[str, Any] = MappingProxyType({})


class MemorySource(ModelSource):
    """Offers tensors as they are.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By their full names.
    config : mapping
        What `config.json` would say.
    """

    path = Path("memory")

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any] = NO_CONFIG) -> None:
        self.tensors = dict(tensors)
        self._config = config

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def files(self) -> Mapping[str, bytes | Path]:
        return {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def spec(self, name: str) -> TensorSpec:
        tensor = self.tensors[name]
        return TensorSpec(name, tensor.shape, kind=tensor.kind)

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        return self.tensors[name]

    def file_of(self, name: str) -> Path:
        return self.path

    def _evidence(self) -> Iterator[bytes]:
        return (tensor.data.tobytes() for tensor in self.tensors.values())
