"""What a model on disk offers, whatever its format: configuration, small files, specs of tensors, lazily read tensors.

`safetensors/folder.py`, `gguf/` and `packed/` implement `ModelSource`; `quantkit.formats.open` returns the right one.
Everybody else sees this class alone. A source knows nothing of architectures: `select` brings together the tensors that
it holds and those that a recorded program reads.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.tensor import GroupScales, Piece, Tensor, TensorSpec
from quantkit_kernels.blocks import dequantize

Prefixes = Sequence[tuple[str, str]]
"""How names of tensors begin in a source, and in a program."""

_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|(rope_(freqs|factors_\w+)|attn_rot_embd)\.weight)$"
)
"""Buffers that some checkpoints store and every program knows: rotary frequencies and factors, causal masks."""
_BLOCK = re.compile(r".*?\.\d+\.")
"""The numbered block that a tensor's name begins with: `model.layers.0.`"""

_PLAIN = ("f32", "f16", "bf16")
"""Kinds of which rows can be taken: those of blocks share blocks with others."""

_COMPARED_WEIGHTS = 1 << 22
"""Weights of two tensors that are compared at a time."""


class ModelSource(ABC):
    """A model on disk, opened: headers read and checked, no tensor touched.

    Attributes
    ----------
    path : Path
        The folder or file that was opened.
    error : class
        Of the exceptions that say that the model is damaged.
    metadata : Mapping or None
        What a GGUF file says of its model, in its own words; None where a `config.json` says it.
    """

    path: Path
    metadata: Mapping[str, Any] | None = None
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

    def entries(self, name: str, wanted: slice, *, copy: bool = False) -> NDArray[Any]:
        """Return some entries of the first axis of a tensor that is f32, f16 or bf16; `tensor` has the rest."""
        return self.tensor(name, copy=copy).data[wanted]

    def group_scales(self, name: str, wanted: slice) -> GroupScales | None:
        """Return what some entries of the first axis of a tensor were quantized with, before they were decoded.

        None where they were not, or where 32 columns of a block have no scale that is theirs alone.
        """
        return None

    @abstractmethod
    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor, for messages."""

    @abstractmethod
    def _evidence(self) -> Iterator[bytes]:
        """Yield what, taken together, changes whenever a byte of the model changes."""

    def _why_missing(self, name: str) -> str:
        """Return the message that says why a tensor is not there, if that is known, else nothing."""
        return ""

    def copies_differ(self, spec: TensorSpec, prefixes: Prefixes = ()) -> bool:
        """Whether a tensor is stored under several of its names, with different numbers; they are read to know it.

        `prefixes` as of `check`.
        """
        known = self._known(prefixes)
        names = [known[name] for name in (spec.name, *spec.aliases) if name in known]
        return any(not self._alike(names[0], other) for other in names[1:])

    def _alike(self, one: str, other: str) -> bool:
        """Whether two tensors are of the same kind, shape and bytes; some rows of both are in memory at once."""
        first, second = self.spec(one), self.spec(other)
        if (first.kind, first.shape) != (second.kind, second.shape):
            return False
        if first.kind not in _PLAIN or not first.shape:
            left, right = self.tensor(one, copy=True), self.tensor(other, copy=True)
            return all(map(np.array_equal, _bytes_of(left), _bytes_of(right)))
        step = max(1, _COMPARED_WEIGHTS * first.shape[0] // max(1, first.weights))
        for begin in range(0, first.shape[0], step):
            here, there = (self.entries(name, slice(begin, begin + step), copy=True) for name in (one, other))
            if not np.array_equal(here.view(np.uint8), there.view(np.uint8)):
                return False
        return True

    def identity(self) -> str:
        """Return a SHA-256 that changes whenever a byte of the model on this disk changes.

        It covers the small files and the headers whole; of files of weights size, inode, and the times of the last
        change, in nanoseconds. A copy of the model has another identity: it is no checksum of the contents.
        """
        digest = hashlib.sha256()
        for evidence in self._evidence():
            digest.update(len(evidence).to_bytes(8, "little") + evidence)
        return digest.hexdigest()

    def check(self, tensors: Mapping[str, TensorSpec], prefixes: Prefixes = (), spare: Iterable[str] = ()) -> list[str]:
        """Compare the tensors with those that a recorded program reads.

        Parameters
        ----------
        tensors : mapping of str to TensorSpec
            What the program reads, by name.
        prefixes : sequence of (str, str)
            How names may begin in this source, and how they begin in the program; the first that fits counts.
        spare : iterable of str
            Tensors that may be there, by the program's names, though it does not read them.

        Returns
        -------
        list of str
            Names of tensors that the program does not read, unless they are spare, a second copy (of a tied head) or
            what every program computes by itself (rotary frequencies).

        Raises
        ------
        the source's error
            When a tensor is missing or has another shape than the program asks for; when the program leaves out a
            tensor of a layer that it uses, such as a bias: the model would compute something else.
        """
        known = self._known(prefixes)
        found, stored = self._find(tensors, known), set(self.names)
        in_blocks = set(map(_in_block, stored))
        for spec in tensors.values():
            self._check_pieces(found.get(spec.name, ()), stored)
            # What only some blocks lack is lost, optional or not.
            names = (spec.name, *(piece.name for piece in spec.pieces))
            if spec.name not in found and not (spec.optional and in_blocks.isdisjoint(map(_in_block, names))):
                raise self._absence(names[-1], spec.pieces[-1].shape if spec.pieces else spec.shape, prefixes)
        read = {piece.name for pieces in found.values() for piece in pieces}
        left = {known.get(name) for spec in tensors.values() for name in (spec.name, *spec.aliases)}
        left |= set(map(known.get, spare))
        left |= read
        unused = [name for name in self.names if name not in left and not _COMPUTED.search(name)]
        layers = {layer for name in read for layer in _layers(name)}
        for name in unused:
            if layers.intersection(_layers(name)):
                raise self.error(
                    f"{self.file_of(name)}: the model does not use tensor {name!r} of a layer that it uses: the "
                    "configuration is of another model, or asks for what quantkit does not compute"
                )
        return unused

    def select(
        self,
        tensors: Mapping[str, TensorSpec],
        prefixes: Prefixes = (),
        config: Mapping[str, Any] | None = None,
        spare: Iterable[str] = (),
    ) -> Selection:
        """Return the source with those tensors alone that a recorded program reads, under the program's names.

        It has another `config.json` where one is given. Parameters and errors as of `check`.
        """
        unused = self.check(tensors, prefixes, spare)
        found = self._find(tensors, self._known(prefixes))
        return Selection(self, tensors, found, unused, self.config if config is None else config)

    def _known(self, prefixes: Prefixes) -> dict[str, str]:
        """Name as a program has it -> name in this source."""
        known = {name: name for name in self.names}
        for name in self.names:
            for stored, meant in prefixes:
                if name.startswith(stored):
                    known.setdefault(meant + name.removeprefix(stored), name)
                    break
        return known

    def _find(self, tensors: Mapping[str, TensorSpec], known: Mapping[str, str]) -> dict[str, tuple[Piece, ...]]:
        """Name in the program -> what it consists of, of each tensor that is there."""
        found: dict[str, tuple[Piece, ...]] = {}
        for spec in tensors.values():
            described = {piece.name for piece in spec.pieces}  # such as norms that are stored with 1 added
            names = (name for name in (spec.name, *spec.aliases) if name in known and name not in described)
            whole = next(names, None)
            pieces = spec.pieces if whole is None else (Piece(whole, spec.shape),)
            if any(piece.name in known for piece in pieces):
                named = (replace(piece, name=known.get(piece.name, piece.name)) for piece in pieces)
                found[spec.name] = tuple(
                    piece.as_stored(self.spec(piece.name).shape) if piece.either_way and piece.name in known else piece
                    for piece in named
                )
        return found

    def _check_pieces(self, pieces: Sequence[Piece], names: Set[str]) -> None:
        """Raise unless the tensors that pieces are taken from are there, and as they should be."""
        for piece in pieces:
            if piece.name not in names:
                raise self._absence(piece.name, piece.shape)
            stored = self.spec(piece.name)
            file = self.file_of(piece.name)
            if stored.shape != piece.shape and not (piece.reshaped and stored.weights == math.prod(piece.shape)):
                raise self.error(
                    f"{file}: tensor {piece.name!r} has shape {stored.shape}, its configuration asks for {piece.shape}"
                )
            if not piece.whole and stored.kind not in _PLAIN:
                raise self.error(f"{file}: tensor {piece.name!r} is {stored.kind}, of which no rows can be taken")
            first = self.spec(pieces[0].name)
            if stored.kind != first.kind:
                raise self.error(
                    f"{file}: tensor {piece.name!r} is {stored.kind} and {pieces[0].name!r} is {first.kind}, "
                    "but both are one tensor of the model"
                )

    def _absence(self, name: str, shape: tuple[int, ...], prefixes: Prefixes = ()) -> QuantkitError:
        other = [stored + name.removeprefix(meant) for stored, meant in prefixes if name.startswith(meant)]
        return self.error(
            next(filter(None, map(self._why_missing, [name, *other])), "")
            or f"{self.path}: has no tensor {name!r} of shape {shape}, which its configuration asks for; "
            "the download is incomplete or the configuration belongs to another model"
        )


class Selection(ModelSource):
    """The tensors of a source that a program reads, under the program's names; `ModelSource.select` makes it.

    Attributes
    ----------
    unused : tuple of str
        Tensors of the source that are left out, harmless ones excepted.
    absent : tuple of str
        Tensors of the program that the source lacks; they are zeros.
    """

    def __init__(
        self,
        source: ModelSource,
        tensors: Mapping[str, TensorSpec],
        found: Mapping[str, tuple[Piece, ...]],
        unused: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        self.path, self.error, self.unused = source.path, source.error, tuple(unused)
        self._config = config
        self._source, self._tensors, self._found = source, tensors, found
        self.absent = tuple(name for name in tensors if name not in found)
        order = {name: place for place, name in enumerate(source.names)}
        self._names = tuple(
            sorted(tensors, key=lambda name: order[found[name][0].name] if name in found else len(order))
        )

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

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
        pieces = self._found.get(name, ())
        kind = "f32" if not pieces or pieces[0].computed else self._source.spec(pieces[0].name).kind
        return replace(self._tensors[name], kind=kind)

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        spec, pieces = self.spec(name), self._found.get(name)
        if pieces is None:
            return Tensor(spec.kind, spec.shape, np.full(spec.shape, spec.number, np.float32))
        if pieces[0].whole and not pieces[1:]:
            whole = self._source.tensor(pieces[0].name, copy=copy)
            return whole if whole.shape == spec.shape else Tensor(spec.kind, spec.shape, whole.data.reshape(spec.shape))
        views = [piece.view(self._stored(piece, piece.entries, copy=copy)) for piece in pieces]
        rows = [view.reshape(-1, *view.shape[2:]) for view in views]
        data = np.concatenate(rows) if rows[1:] else np.ascontiguousarray(rows[0])
        return Tensor(spec.kind, spec.shape, data.reshape(spec.shape))

    def reads_rows(self, name: str) -> bool:
        """Whether `entries` reads some rows of a tensor without reading all."""
        return self._places(name) is not None

    def entries(self, name: str, wanted: slice, *, copy: bool = False) -> NDArray[Any]:
        found = self._places(name)
        if found is None:
            return self.tensor(name, copy=copy).data[wanted]
        if not found:
            return np.zeros(self._tensors[name].shape, np.float32)[wanted]
        first, last, _ = wanted.indices(sum(len(places) for _, places in found))
        parts = []
        for piece, places in found:
            parts.append((piece, places[max(first, 0) : max(last, 0)]))
            first, last = first - len(places), last - len(places)
        rows = [self._rows(piece, places, copy=copy) for piece, places in parts if len(places)]
        return np.concatenate(rows) if rows[1:] else rows[0]

    def _places(self, name: str) -> list[tuple[Piece, NDArray[np.intp]]] | None:
        """Return the pieces of a tensor, and which stored rows are theirs; None where a row is no stored row."""
        found = []
        for piece in self._found.get(name, ()):
            places = piece.places()
            if places is None or piece.shape != self._source.spec(piece.name).shape:
                return None
            found.append((piece, places))
        return found

    def _rows(self, piece: Piece, places: NDArray[np.intp], *, copy: bool) -> NDArray[Any]:
        """Read the stored rows at some places, which are near one another."""
        first, last = int(places.min()), int(places.max()) + 1
        stored = self._stored(piece, slice(first, last), copy=copy)
        in_order = np.array_equal(places, np.arange(first, last))
        return piece.numbers(stored if in_order else stored[places - first])

    def _stored(self, piece: Piece, entries: slice, *, copy: bool) -> NDArray[Any]:
        """Read some entries of the tensor that a piece is taken from, as f32 where they are computed with."""
        stored = self._source.entries(piece.name, entries, copy=copy)
        kind = self._source.spec(piece.name).kind
        return dequantize(kind, stored, None, stored.shape) if piece.computed and kind != "f32" else stored

    def group_scales(self, name: str, wanted: slice) -> GroupScales | None:
        first, last, _ = wanted.indices(self._tensors[name].shape[0])
        found = []
        for piece in self._found.get(name, ()):
            if first < piece.rows and last > 0:
                found.append(self._scales(piece, slice(max(first, 0), last)))
            first, last = first - piece.rows, last - piece.rows
        known = [scales for scales in found if scales is not None]
        return GroupScales.joined(known) if known and len(known) == len(found) else None

    def _scales(self, piece: Piece, wanted: slice) -> GroupScales | None:
        """Return what some rows of a piece were quantized with."""
        if not piece.keeps_rows or piece.shape != self._source.spec(piece.name).shape:
            return None
        places = piece.places()
        if places is None:  # a matrix of a stack, or rows that are far apart
            found = self._source.group_scales(piece.name, piece.entries)
            return found and found.viewed(lambda it: piece.view(it).reshape(-1, it.shape[-1])[wanted])
        places = places[wanted]
        first = int(places.min())
        found = self._source.group_scales(piece.name, slice(first, int(places.max()) + 1))
        return found and found.viewed(lambda it: it[places - first])

    def file_of(self, name: str) -> Path:
        return self._source.file_of(self._found[name][0].name) if name in self._found else self.path

    def _evidence(self) -> Iterator[bytes]:
        return self._source._evidence()


def _bytes_of(tensor: Tensor) -> list[NDArray[np.uint8]]:
    arrays = (tensor.data, tensor.row_scales)
    return [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays if array is not None]


def _in_block(name: str) -> str:
    """A tensor's name without the numbered block, if any, that it begins with."""
    return _BLOCK.sub("", name, count=1)


def _layers(name: str) -> set[str]:
    """The module that a tensor belongs to, and the numbered block, if any."""
    block = _BLOCK.match(name)
    return {name.rpartition(".")[0] + "."} | ({block[0]} if block else set())
