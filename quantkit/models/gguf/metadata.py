"""The metadata of one GGUF file: values by the keys of its architecture, each checked when it is asked for.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, without the architecture before them. What
they mean for a model is said in `config/` and in the tables of architectures; no file is known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import shown
from quantkit.tensor import TensorSpec


class Metadata:
    """What a GGUF file says of its model.

    Parameters
    ----------
    values : Mapping
        Key -> str, bool, int, float, list of str, or ndarray.
    tensors : Mapping
        Name -> spec of each tensor of the file.
    read : callable
        Returns the numbers of a tensor.

    Attributes
    ----------
    architecture : str
        `general.architecture`.
    tensors : Mapping
    """

    def __init__(
        self, values: Mapping[str, Any], tensors: Mapping[str, TensorSpec], read: Callable[[str], NDArray[Any]]
    ) -> None:
        self._values, self.tensors, self._read = values, tensors, read
        self._asked: set[str] = set()
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise CheckpointError("its metadata has no general.architecture")
        self.architecture = architecture

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a value that is one for all layers, or for all that have any; raises unless it is of that type."""
        self._asked.add(key)
        value: Any = self._values.get(self._key(key))
        if value is None:
            return default
        if isinstance(value, np.ndarray):
            values = set(value[value != 0].tolist())
            if len(values) > 1:
                raise UnsupportedError(f"its {self._key(key)} differs from layer to layer, which quantkit does not run")
            value = values.pop() if values else kind(0)
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (kind, int) if kind is float else kind):
            raise CheckpointError(f"its {self._key(key)} is {shown(value)}, not of type {kind.__name__}")
        number: Any = value
        return shortest(number) if kind is float else number

    def says(self, key: str) -> bool:
        """Whether a key has another value than 0."""
        return bool(np.any(self._values.get(self._key(key), 0)))

    def require(self, key: str, kind: type) -> Any:
        """Return a value as `get`; raises `CheckpointError` where there is none."""
        value = self.get(key, kind)
        if value is None:
            raise CheckpointError(f"its metadata has no {self._key(key)}")
        return value

    def flags(self, key: str, count: int) -> list[bool] | None:
        """Return true or false for each of `count` layers; None where there is no such key."""
        self._asked.add(key)
        value = self._values.get(self._key(key))
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.ndim != 1 or len(value) < count or value.dtype.kind not in "bui":
            raise CheckpointError(
                f"its {self._key(key)} is {shown(value)}, not true or false for each of {count} layers"
            )
        return [bool(flag) for flag in value[:count]]

    def each(self, key: str) -> list[int]:
        """Return whole numbers that may differ from layer to layer; one alone is that of all layers."""
        self._asked.add(key)
        value = np.atleast_1d(np.asarray(self._values.get(self._key(key), [])))
        if value.ndim != 1 or not len(value) or value.dtype.kind not in "ui":
            raise CheckpointError(f"its {self._key(key)} is {shown(value)}, not a whole number for each layer")
        numbers: list[int] = value.tolist()
        return numbers

    def decimals(self, key: str, count: int) -> list[float] | None:
        """Return a number for each of `count` layers, of a whole key, which may have one for all; None without it."""
        if key not in self._values:
            return None
        value = np.atleast_1d(np.asarray(self._values[key]))
        value = np.repeat(value, count) if value.shape == (1,) else value
        if value.ndim != 1 or len(value) < count or value.dtype.kind != "f":
            raise CheckpointError(f"its {key} is {shown(self._values[key])}, not a number for each of {count} layers")
        return [shortest(number) for number in value[:count].tolist()]

    def numbers(self, name: str) -> list[float] | None:
        """Return the numbers of a small tensor; None where there is no such tensor."""
        spec = self.tensors.get(name)
        if spec is None:
            return None
        if spec.kind != "f32" or len(spec.shape) != 1 or spec.weights > 65_536:
            raise CheckpointError(f"its tensor {name!r} is {spec.kind} of shape {spec.shape}, not a few f32 numbers")
        return [shortest(number) for number in self._read(name).tolist()]

    def tensor(self, name: str) -> TensorSpec:
        """Return the spec of a matrix; raises `CheckpointError` where there is none."""
        spec = self.tensors.get(name)
        if spec is None or len(spec.shape) != 2:
            raise CheckpointError(f"has no matrix {name!r}")
        return spec

    def has(self, name: str) -> bool:
        """Whether any block, or what stands beside the blocks, has a tensor."""
        return name in self._known

    @cached_property
    def _known(self) -> frozenset[str]:
        """Names of tensors without their blocks."""
        return frozenset(re.sub(r"^blk\.\d+\.", "", name) for name in self.tensors)

    def unasked(self) -> dict[str, Any]:
        """Return what nobody asked for, of the keys of the architecture."""
        prefix = self._key("")
        own = {key.removeprefix(prefix): value for key, value in self._values.items() if key.startswith(prefix)}
        return {key: value for key, value in own.items() if key not in self._asked}

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"


def shortest(value: float) -> float:
    """Return the number with the fewest digits that is the same in float32: 1e-05, where a file has 9.99999975e-06."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else float(value)
