"""What a model on disk offers, whatever its format: configuration, small files, specs of tensors, lazily read tensors.

`folder.py`, `gguf/` and `packed.py` implement `ModelSource`; `quantkit.formats.open` returns the right one. Everybody
else sees this class alone. A source knows nothing of architectures: `select` brings together the tensors that it holds
and those that a recorded program reads.
"""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.tensor import Tensor, TensorSpec

logger = logging.getLogger(__name__)

_COMPUTED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
"""A buffer that some checkpoints store and every program computes by itself."""
_BLOCK = re.compile(r".*?\.\d+\.")
"""The numbered block that a tensor's name begins with: `model.layers.0.`"""

_COMPARED_BYTES = 1 << 24
"""Bytes of two tensors that are compared at a time."""


class ModelSource(ABC):
    """A model on disk, opened: headers read and checked, no tensor touched.

    Attributes
    ----------
    path : Path
        The folder or file that was opened.
    error : class
        Of the exceptions that say that the model is damaged.
    """

    path: Path
    error: type[QuantkitError] = CheckpointError

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
        """Bytes of all tensors on disk."""

    @abstractmethod
    def spec(self, name: str) -> TensorSpec:
        """Return a tensor's kind and shape; raises the source's error when it is missing or of an unreadable type."""

    @abstractmethod
    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        """Return a tensor by its full name (`...weight`); raises as `spec` does.

        Parameters
        ----------
        name : str
        copy : bool
            Read it into memory. A map, the default, is faster and costs no memory, but the process dies of SIGBUS when
            the file is truncated while it is in use; a copy raises the source's error instead.
        """

    @abstractmethod
    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor, for messages."""

    @abstractmethod
    def _evidence(self) -> Iterator[bytes]:
        """Yield what, taken together, changes whenever a byte of the model changes."""

    def _why_missing(self, name: str) -> str:
        """Return the message that says why a tensor is not there, if that is known, else nothing."""
        return ""

    def copies_differ(self, spec: TensorSpec) -> bool:
        """Whether a tensor is stored under several of its names, with different numbers; they are read to know it."""
        names = [name for name in (spec.name, *spec.aliases) if name in self.names]
        copies = [self.tensor(name, copy=True) for name in names] if names[1:] else []
        return any(not _alike(copies[0], other) for other in copies[1:])

    def identity(self) -> str:
        """Return a SHA-256 that changes whenever a byte of the model on this disk changes.

        It covers the small files and the headers whole; of files of weights size, inode, and the times of the last
        change, in nanoseconds. A copy of the model has another identity: it is no checksum of the contents.
        """
        digest = hashlib.sha256()
        for evidence in self._evidence():
            digest.update(len(evidence).to_bytes(8, "little") + evidence)
        return digest.hexdigest()

    def check(self, tensors: Mapping[str, TensorSpec]) -> list[str]:
        """Compare the tensors with those that a recorded program reads.

        Returns
        -------
        list of str
            Names of tensors that the program does not read, unless they are a second copy (of a tied head) or what
            every program computes by itself (rotary frequencies).

        Raises
        ------
        the source's error
            When a tensor is missing or has another shape than the program asks for; when the program leaves out a
            tensor of a layer that it uses, such as a bias: the model would compute something else.
        """
        stored = self._stored(tensors)
        in_blocks = {_in_block(name) for name in self.names}
        for spec in tensors.values():
            # What only some blocks lack is lost, optional or not.
            if spec.name in stored or not spec.optional or _in_block(spec.name) in in_blocks:
                self._check_shape(spec, stored.get(spec.name))
        read = set(stored.values())
        copies = {name for spec in tensors.values() for name in (spec.name, *spec.aliases)}
        unused = [name for name in self.names if name not in read | copies and not _COMPUTED.search(name)]
        layers = {layer for name in read for layer in _layers(name)}
        for name in unused:
            if layers.intersection(_layers(name)):
                raise self.error(
                    f"{self.file_of(name)}: the model does not use tensor {name!r} of a layer that it uses: the "
                    "configuration is of another model, or asks for what quantkit does not compute"
                )
        return unused

    def select(self, tensors: Mapping[str, TensorSpec]) -> Selection:
        """Return the source with those tensors alone that a recorded program reads, under the program's names.

        What is left out is logged in one warning; raises as `check` does.
        """
        unused = self.check(tensors)
        if unused:
            more = f" and {len(unused) - 1} more, such as {unused[-1]!r}" if unused[1:] else ""
            logger.warning("%s: the model does not use tensor %r%s; left out", self.path, unused[0], more)
        return Selection(self, tensors, self._stored(tensors), unused)

    def _stored(self, tensors: Mapping[str, TensorSpec]) -> dict[str, str]:
        """Name in the program -> name in the source, of each tensor that is there."""
        names = set(self.names)
        found = {
            spec.name: next((name for name in (spec.name, *spec.aliases) if name in names), "")
            for spec in tensors.values()
        }
        return {name: stored for name, stored in found.items() if stored}

    def _check_shape(self, spec: TensorSpec, stored: str | None) -> None:
        if stored is None:
            raise self.error(
                self._why_missing(spec.name)
                or f"{self.path}: has no tensor {spec.name!r} of shape {spec.shape}, which its configuration asks for; "
                "the download is incomplete or the configuration belongs to another model"
            )
        if (shape := self.spec(stored).shape) != spec.shape:
            raise self.error(
                f"{self.file_of(stored)}: tensor {stored!r} has shape {shape}, its configuration asks for {spec.shape}"
            )


class Selection(ModelSource):
    """The tensors of a source that a program reads, under the program's names; `ModelSource.select` makes it.

    Attributes
    ----------
    unused : tuple of str
        Tensors of the source that are left out, harmless ones excepted.
    """

    def __init__(
        self, source: ModelSource, tensors: Mapping[str, TensorSpec], stored: Mapping[str, str], unused: Sequence[str]
    ) -> None:
        self.path, self.error, self.unused = source.path, source.error, tuple(unused)
        self._source, self._tensors, self._stored_names = source, tensors, stored
        order = {name: place for place, name in enumerate(source.names)}
        self._names = tuple(sorted(tensors, key=lambda name: order.get(stored.get(name, ""), len(order))))

    @property
    def config(self) -> Mapping[str, Any]:
        return self._source.config

    @property
    def files(self) -> Mapping[str, bytes | Path]:
        return self._source.files

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def nbytes(self) -> int:
        return self._source.nbytes

    def spec(self, name: str) -> TensorSpec:
        stored = self._stored_names.get(name)
        return replace(self._tensors[name], kind="f32" if stored is None else self._source.spec(stored).kind)

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        stored = self._stored_names.get(name)
        if stored is None:
            return Tensor("f32", self._tensors[name].shape, np.zeros(self._tensors[name].shape, np.float32))
        return self._source.tensor(stored, copy=copy)

    def file_of(self, name: str) -> Path:
        return self._source.file_of(self._stored_names[name]) if name in self._stored_names else self.path

    def _evidence(self) -> Iterator[bytes]:
        return self._source._evidence()


def _alike(one: Tensor, other: Tensor) -> bool:
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    rows = max(1, _COMPARED_BYTES * len(one.data) // max(1, one.data.nbytes))
    parts = [(one.data[at : at + rows], other.data[at : at + rows]) for at in range(0, len(one.data), rows)]
    if one.row_scales is not None and other.row_scales is not None:
        parts.append((one.row_scales, other.row_scales))
    return all(np.array_equal(left.view(np.uint8), right.view(np.uint8)) for left, right in parts)


def _in_block(name: str) -> str:
    """A tensor's name without the numbered block, if any, that it begins with."""
    return _BLOCK.sub("", name, count=1)


def _layers(name: str) -> set[str]:
    """The module that a tensor belongs to, and the numbered block, if any."""
    block = _BLOCK.match(name)
    return {name.rpartition(".")[0] + "."} | ({block[0]} if block else set())
