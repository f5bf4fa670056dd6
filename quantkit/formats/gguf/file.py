"""One GGUF file: its metadata and its tensors' places, checked, over a read-only memory map.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The header is parsed
here and not by `gguf.GGUFReader`, which follows the counts of a damaged file without end and takes seconds for a large
vocabulary. Tensor types, their block sizes and de-quantization are the `gguf` package's (extra `gguf`).

What the metadata means is asked in `checkpoint.py` and `tokenizer.py`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.formats.json_files import MAX_BYTES, MAX_VALUES
from quantkit.formats.mapped import Entry, MappedFile

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

T = TypeVar("T", bool, int, float, str)


def gguf_package() -> ModuleType:
    """Return the `gguf` package; raises `UnsupportedError` with the install command when there is none."""
    try:
        import gguf
    except ImportError as cause:
        raise UnsupportedError("reading GGUF files needs the gguf package: pip install 'quantkit[gguf]'") from cause
    package: ModuleType = gguf
    return package


class GGUFFile:
    """An open GGUF file.

    Attributes
    ----------
    metadata : Mapping of key to str, bool, int, float, list of str, or ndarray
    tensors : Mapping of tensor name to Entry, in the file's order of bytes

    Raises
    ------
    CheckpointError
        When the file is truncated or damaged.
    UnsupportedError
        When the package `gguf` is missing, or the version or a tensor's type is unknown.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._package = gguf_package()
        self.mapped = MappedFile(path)
        self.path = self.mapped.path
        if self.mapped.bytes[:4] != b"GGUF":
            raise self.mapped.fault("is not a GGUF file")
        cursor = _Cursor(self.mapped)
        version = cursor.number("I")
        if version not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: has GGUF version {version}; versions 2 and 3 (little-endian) are read"
            )
        tensor_count, metadata_count = cursor.count(), cursor.count()
        self.metadata: Mapping[str, Any] = self._unique(cursor.metadata(metadata_count), "metadata key")
        infos = self._unique(cursor.tensor_infos(tensor_count), "tensor")
        alignment = self.value("general.alignment", int, DEFAULT_ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1):
            raise self.mapped.fault(f"general.alignment is {alignment}, not a power of two")
        self._header_bytes = cursor.position
        start = -(-cursor.position // alignment) * alignment
        entries = {name: self._entry(name, start, *info) for name, info in infos.items()}
        self.tensors: Mapping[str, Entry] = dict(sorted(entries.items(), key=lambda item: item[1].begin))
        self._check_layout()

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a metadata value of a given type; raises `CheckpointError` when it is missing or of another type."""
        value = self.metadata.get(key, default)
        if value is None:
            raise self.mapped.fault(f"its metadata has no {key}")
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (kind, int) if kind is float else kind):
            raise self.mapped.fault(f"its metadata {key} is not of type {kind.__name__}")
        return kind(value)

    def raw_header(self) -> bytes:
        """Return metadata and places of tensors as they stand in the file."""
        return self.mapped.read("u1", (self._header_bytes,), 0).tobytes()

    def _unique(self, items: Iterator[tuple[str, Any]], what: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in items:
            if name in result:
                raise self.mapped.fault(f"has {what} {name!r} twice")
            result[name] = value
        return result

    def _entry(self, name: str, start: int, dimensions: tuple[int, ...], code: int, offset: int) -> Entry:
        try:
            kind = self._package.GGMLQuantizationType(code)
        except ValueError as cause:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has type {code}, which the gguf package does not know; try a newer gguf"
            ) from cause
        block, block_bytes = self._package.GGML_QUANT_SIZES[kind]
        if not 0 < math.prod(dimensions) < 2**60 or (dimensions or (1,))[0] % block:
            raise self.mapped.fault(f"tensor {name!r} has the impossible shape {dimensions} for type {kind.name}")
        begin = start + offset
        end = begin + math.prod(dimensions) // block * block_bytes
        if end > self.mapped.size:
            raise self.mapped.fault(
                f"is truncated: tensor {name!r} ends at byte {end}, the file has {self.mapped.size}; download it again"
            )
        return Entry(kind.name, dimensions[::-1], begin, end)

    def _check_layout(self) -> None:
        position = 0
        for name, entry in self.tensors.items():
            if entry.begin < position:
                raise self.mapped.fault(f"tensor {name!r} overlaps its neighbour")
            position = entry.end


class _Cursor:
    """Reads a header's parts one after another, never beyond the file."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self.position = 4  # after the magic

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def count(self) -> int:
        """How many values follow: not more than a real file has, for they come into memory."""
        found = int(self.number("Q"))
        if found > MAX_VALUES:
            raise self._file.fault(f"is damaged: its header announces {found} values in a row")
        return found

    def metadata(self, count: int) -> Iterator[tuple[str, Any]]:
        for _ in range(count):
            key = self._string()
            yield key, self._value(self.number("I"))

    def tensor_infos(self, count: int) -> Iterator[tuple[str, tuple[tuple[int, ...], int, int]]]:
        """Name, (dimensions with the columns first, type, offset) of each tensor."""
        for _ in range(count):
            name, rank = self._string(), self.number("I")
            if rank > MAX_DIMENSIONS:
                raise self._file.fault(f"tensor {name!r} has {rank} dimensions")
            dimensions = tuple(self.number("Q") for _ in range(rank))
            yield name, (dimensions, self.number("I"), self.number("Q"))

    def _take(self, count: int) -> bytes:
        if count > min(self._file.size - self.position, MAX_BYTES):
            raise self._file.fault("is truncated or damaged: its header does not end within the file")
        self.position += count
        return self._file.bytes[self.position - count : self.position]

    def _string(self) -> str:
        # Not every writer keeps to UTF-8; what is not becomes U+FFFD.
        return self._take(int.from_bytes(self._take(8), "little")).decode("utf-8", "replace")

    def _strings(self, count: int) -> list[str]:
        """As `_string`, for vocabularies: they have half a million of tokens and merges."""
        data, size, position = self._file.bytes, self._file.size, self.position
        found = []
        for _ in range(count):
            begin = position + 8
            position = begin + int.from_bytes(data[position:begin], "little")
            if position > size or position - begin > MAX_BYTES:
                raise self._file.fault("is truncated or damaged: its header does not end within the file")
            found.append(data[begin:position].decode("utf-8", "replace"))
        self.position = position
        return found

    def _value(self, code: int) -> Any:
        if code == STRING:
            return self._string()
        if code == ARRAY:
            return self._array(self.number("I"), self.count())
        if code in NUMBERS:
            return self.number(NUMBERS[code])
        raise self._file.fault(f"is damaged: its metadata holds a value of unknown type {code}")

    def _array(self, code: int, count: int) -> Any:
        if code == STRING:
            return self._strings(count)
        if code in NUMBERS:
            dtype = np.dtype("<" + NUMBERS[code])
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        raise self._file.fault(f"is damaged: its metadata holds an array of type {code}")
