"""One safetensors file: its header, checked by the safetensors library, and its tensors as views into a memory map.

The format is 8 bytes of little-endian header length, a JSON header, and the tensors' bytes without holes
(https://github.com/huggingface/safetensors#format). What the library opens is opened here, and nothing else. Its numpy
side copies every tensor and refuses BF16 and FP8, so the bytes come from a map of our own: BF16 as uint16 bit patterns.

Models and folders are not known here: `folder.py` reads checkpoints with this module, and `formats/packed/` packed
models. `writer.py` writes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.formats.json_files import MAX_VALUES, too_many_values
from quantkit.formats.magic import HEAD_BYTES, Magic, recognize
from quantkit.formats.mapped import Entry, MappedFile

MAX_HEADER_BYTES = 100_000_000  # the library's limit
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "BOOL": 8, "U8": 8, "I8": 8,
    "F16": 16, "BF16": 16, "U16": 16, "I16": 16, "F32": 32, "U32": 32, "I32": 32,
    "F64": 64, "U64": 64, "I64": 64, "C64": 64,
}  # fmt: skip
"""Every dtype that the library knows -> bits of an element."""
ALL = slice(None)
NUMPY = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1",
    "I8": "i1", "I16": "<i2", "I32": "<i4", "U32": "<u4", "I64": "<i8",
}  # fmt: skip
"""The dtypes that are read -> how numpy sees their bytes."""


class SafetensorsFile:
    """An open safetensors file.

    Parameters
    ----------
    path : path of the file
    error : exception class that is raised for every fault of the file, with a message that starts with its path

    Attributes
    ----------
    header : Mapping of tensor name to Entry, in the file's order of bytes
    metadata : Mapping of str to str, the header's `__metadata__`
    size : bytes of the file
    """

    def __init__(self, path: str | os.PathLike[str], error: type[QuantkitError] = CheckpointError) -> None:
        self._file = MappedFile(path, error)
        self.path, self.size = self._file.path, self._file.size
        self._header_bytes = self._check_length()
        self.header: Mapping[str, Entry]
        self.metadata: Mapping[str, str]
        self.header, self.metadata = self._read_header()

    def array(self, name: str, entries: slice = ALL, *, copy: bool = False) -> NDArray[Any]:
        """Return a tensor: floats and integers as they are, BF16 as uint16 and FP8 as uint8, for their bit patterns.

        Parameters
        ----------
        name : str
        entries : slice
            Of its first axis, one after the other, such as some rows.
        copy : bool
            Read it into memory; else it is a read-only view of the map.

        Raises
        ------
        the file's error class
            When there is no such tensor, its dtype is none of `NUMPY`, or the file was truncated meanwhile.
        """
        entry = self.header.get(name)
        if entry is None:
            raise self._file.fault(f"has no tensor {name!r}")
        if entry.dtype not in NUMPY:
            raise self._file.fault(f"tensor {name!r} has dtype {entry.dtype}, which is not one of {', '.join(NUMPY)}")
        if entries != ALL:
            entry = entry.part(entries)
        try:
            return (self._file.read if copy else self._file.view)(NUMPY[entry.dtype], entry.shape, entry.begin)
        except ValueError as cause:  # numpy has fewer dimensions, and smaller ones
            raise self._file.fault(f"tensor {name!r} has the impossible shape {entry.shape[:8]}") from cause

    def raw_header(self) -> bytes:
        """Return length and header as they stand in the file."""
        return self._file.read("u1", (self._header_bytes,), 0).tobytes()

    def identity(self) -> bytes:
        """Return what changes whenever a byte of the file changes: size, inode and times, and the header itself."""
        return self._file.identity() + self.raw_header()

    def _check_length(self) -> int:
        """Return the bytes of length and header, which are those of a safetensors file of bearable size."""
        head = self._file.bytes[:HEAD_BYTES]
        kind = recognize(head)
        if kind not in (Magic.SAFETENSORS, Magic.UNKNOWN):
            raise self._file.fault(f"is {kind.value}")
        end = 8 + int.from_bytes(head[:8], "little")
        if self.size < 8 or end > self.size:
            raise self._file.fault(
                f"is not a safetensors file or truncated: its header does not fit into {self.size} bytes"
            )
        if end > MAX_HEADER_BYTES:
            raise self._file.fault(f"claims a header of {end - 8} bytes; at most {MAX_HEADER_BYTES} are allowed")
        if too_many_values(self._file.bytes[8:end]):
            raise self._file.fault(f"its header of {end - 8} bytes holds more than {MAX_VALUES} values")
        return end

    def _read_header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        try:
            file: Any = safe_open(self.path, framework="np")
        except (SafetensorError, OSError) as cause:
            reason = str(cause).removeprefix("Error while deserializing header: ")
            raise self._file.fault(_EXPLAINED.get(reason, f"its header is damaged: {reason:.300}")) from cause
        header = {}
        position = self._header_bytes
        for name in file.offset_keys():
            piece = file.get_slice(name)
            dtype, shape = piece.get_dtype(), tuple(piece.get_shape())
            if dtype not in BITS:
                raise self._file.fault(f"tensor {name!r} has dtype {dtype}, whose size quantkit does not know")
            end = position + math.prod(shape) * BITS[dtype] // 8  # the library has checked that there are no holes
            header[name] = Entry(dtype, shape, position, end)
            position = end
        if position != self.size:
            raise self._file.fault("was changed while it was opened")
        return header, file.metadata() or {}


_EXPLAINED = {
    "incomplete metadata, file not fully covered": (
        "is truncated, or has bytes after its last tensor; download the file again"
    ),
}
"""What the library says -> what it means."""
