"""One safetensors file: its header, checked, and its tensors as views into a read-only memory map.

The format is 8 bytes of little-endian header length, a JSON header, and the tensors' bytes without holes
(https://github.com/huggingface/safetensors#format). Everything the header claims is checked before anything is mapped
to an array, so a damaged or hostile file ends in an exception that names it. The official numpy bindings are not used
because they raise on BF16; here BF16 comes out as uint16 bit patterns.

This module knows neither models nor folders: `folder.py` reads checkpoints with it and `packed.py` packed models.
Writing is `writer.py`'s.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.formats.mapped import MappedFile

MAX_HEADER_BYTES = 100_000_000  # the official library's limit
MAX_DIMENSIONS = 32
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8, "U8": 8, "I8": 8,
    "F16": 16, "BF16": 16, "U16": 16, "I16": 16, "F32": 32, "U32": 32, "I32": 32,
    "F64": 64, "U64": 64, "I64": 64, "C64": 64,
}  # fmt: skip
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}


class Entry(NamedTuple):
    """What a header says about a tensor; `begin` and `end` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


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
        raw = self._read_header()
        content = self._parse(raw)
        self.metadata: Mapping[str, str] = self._check_metadata(content.pop("__metadata__", {}))
        entries = {name: self._check_entry(name, value, 8 + len(raw)) for name, value in content.items()}
        self.header: Mapping[str, Entry] = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
        self._check_layout(8 + len(raw))

    def array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of a tensor: float32, float16, uint8, or uint16 for the bit patterns of BF16.

        Raises
        ------
        the file's error class
            When there is no such tensor, or its dtype is none of F32, F16, BF16, U8.
        """
        entry = self.header.get(name)
        if entry is None:
            raise self._file.fault(f"has no tensor {name!r}")
        if entry.dtype not in NUMPY:
            raise self._file.fault(f"tensor {name!r} has dtype {entry.dtype}, which is not one of {', '.join(NUMPY)}")
        return self._file.view(NUMPY[entry.dtype], entry.shape, entry.begin)

    def release(self, name: str) -> None:
        """Give the tensor's mapped pages back to the system; a later access reads them again."""
        self._file.release(self.header[name].begin, self.header[name].end)

    def sample(self, name: str) -> bytes:
        """Return dtype, shape and 64 bytes from the middle of a tensor, to tell files apart cheaply."""
        dtype, shape, begin, end = self.header[name]
        middle = (begin + end) // 2
        return f"{dtype} {shape}\n".encode() + self._file.bytes[middle : min(middle + 64, end)]

    def _read_header(self) -> bytes:
        length = int.from_bytes(self._file.bytes[:8], "little")
        if self.size < 8 or 8 + length > self.size:
            raise self._file.fault(
                f"is not a safetensors file or truncated: its header does not fit into {self.size} bytes"
            )
        if length > MAX_HEADER_BYTES:
            raise self._file.fault(f"claims a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
        return self._file.bytes[8 : 8 + length]

    def _parse(self, raw: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            result = dict(pairs)
            if len(result) < len(pairs):
                (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
                raise self._file.fault(f"its header names {twice!r} twice")
            return result

        try:
            content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        except (ValueError, RecursionError) as fault:
            raise self._file.fault("its header is not JSON; download the file again") from fault
        if not isinstance(content, dict):
            raise self._file.fault("its header is not a JSON object")
        return content

    def _check_metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self._file.fault("its __metadata__ is not a map of strings to strings")
        return value

    def _check_entry(self, name: str, value: Any, data_start: int) -> Entry:
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if all(
                type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)
            ):
                pass
            case _:
                raise self._file.fault(f"its header entry for tensor {name!r} is malformed")
        if dtype not in BITS:
            raise self._file.fault(f"tensor {name!r} has unknown dtype {dtype!r}")
        if len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) * 8 >= 2**63:
            raise self._file.fault(f"tensor {name!r} has the impossible shape {shape[:MAX_DIMENSIONS]}")
        if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
            raise self._file.fault(
                f"tensor {name!r} should take {math.prod(shape) * BITS[dtype] // 8} bytes as {dtype} of shape {shape}, "
                f"its offsets span {end - begin}"
            )
        return Entry(dtype, tuple(shape), data_start + begin, data_start + end)

    def _check_layout(self, data_start: int) -> None:
        position = data_start
        for name, entry in self.header.items():
            if entry.begin != position:
                what = "overlaps its neighbour" if entry.begin < position else "leaves a hole before it"
                raise self._file.fault(f"tensor {name!r} {what} (offset {entry.begin - data_start})")
            position = entry.end
        if position > self.size:
            raise self._file.fault(
                f"is truncated: its tensors end at byte {position}, it has {self.size}; download the file again"
            )
        if position < self.size:
            raise self._file.fault(f"has {self.size - position} bytes after its last tensor; download the file again")
