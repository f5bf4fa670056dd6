"""What every checkpoint offers, wherever its bytes come from: configuration, sidecar files, lazily read tensors.

`folder.py` and `gguf.py` implement it; `convert.py`, `load.py` and the command line see nothing but this class.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError
from quantkit.tensor import Tensor, TensorSpec


class Header(NamedTuple):
    """What is known of a tensor without touching its data: one of `f32`, `f16`, `bf16`, and its shape."""

    kind: str
    shape: tuple[int, ...]


class Checkpoint(ABC):
    """A downloaded model, opened: headers read and checked, no tensor touched. It is a `WeightSource`.

    Attributes
    ----------
    path : Path
        The folder or file that was opened.
    """

    path: Path

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """`config.json`, or what amounts to it."""

    @property
    @abstractmethod
    def files(self) -> Mapping[str, bytes | Path]:
        """Files that belong to the model besides config and weights (`tokenizer.json`, ...): bytes or path of each."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of their bytes: reading in this order reads the disk in order."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all tensors in the source."""

    @abstractmethod
    def header(self, name: str) -> Header:
        """Return a tensor's kind and shape; raises `CheckpointError` when it is missing or of an unreadable dtype."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its full name (`...weight`); raises `CheckpointError` as `header` does."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Give the pages that `tensor(name)` mapped back to the system; the tensor stays usable."""

    @abstractmethod
    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor, for messages."""

    @abstractmethod
    def _texts(self) -> Iterator[bytes]:
        """Yield the contents of everything that is not a tensor and small enough to be read whole."""

    @abstractmethod
    def _sample(self, name: str) -> bytes:
        """Return a few bytes from the middle of a tensor as stored."""

    def check(self, tensors: Mapping[str, TensorSpec]) -> list[str]:
        """Compare the tensors with those that the recorded program reads.

        Returns
        -------
        list of str
            Names of tensors that the program does not read: left-overs such as rotary `inv_freq` buffers, the second
            copy of a tied head, or a sign that the architecture is not what config.json says.

        Raises
        ------
        CheckpointError
            When a tensor is missing, or has another shape or dtype than the config asks for.
        """
        names = set(self.names)
        for spec in tensors.values():
            if spec.name not in names:
                raise CheckpointError(
                    f"{self.path}: has no tensor {spec.name!r} {spec.shape}, which its configuration asks for; "
                    "the download is incomplete or the configuration belongs to another model"
                )
            shape = self.header(spec.name).shape
            if shape != spec.shape:
                raise CheckpointError(
                    f"{self.file_of(spec.name)}: tensor {spec.name!r} has shape {shape}, "
                    f"its configuration asks for {spec.shape}"
                )
        return [name for name in self.names if name not in tensors]

    def fingerprint(self) -> str:
        """Return a SHA-256 over configuration, sidecar files, and every tensor's name, kind, shape and 64 of its bytes.

        It tells apart checkpoints of the same shape without reading them whole; it is no checksum of the contents.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for text in self._texts():
            digest.update(text)
        for name in sorted(self.names):
            digest.update(f"\n{name}\n".encode("utf-8", "surrogatepass"))
            digest.update(self._sample(name))
        return digest.hexdigest()
