"""Safetensors files written as a stream: the layout is known beforehand, the tensors come in pieces.

The official library's writer wants every tensor in memory at once; here memory holds a piece. `file.py` reads such
files, `formats/output/` makes the folders around them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Tensor data begins on a multiple of this: a cache line."""
READ_BYTES = 1 << 22
"""Bytes of what was written that are read again at once."""
PADDING = "padding."
"""Names of tensors that only fill: the format knows no holes."""
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


class SafetensorsWriter:
    """Streams tensors, in any order, into a safetensors file whose layout is known beforehand.

    The format (https://github.com/huggingface/safetensors#format) is a header and data without holes. The header is
    padded with spaces, so that the data begins on a multiple of 64 bytes; where a tensor ends on no multiple of
    `alignment`, a tensor `padding.N` of zeros follows it.

    Parameters
    ----------
    path : Path
        The file. Its size is claimed at once, so a full disk is noticed before any work. Tensors that an interrupted
        writer of the same layout left in it can be kept.
    tensors : mapping of str to (str, tuple of int)
        dtype, as safetensors spells it, and shape of each tensor, in the order of the file.
    metadata : mapping of str to str
        The header's `__metadata__`.
    alignment : int
        1 where other tools read the file, which may refuse tensors that they don't know.

    Attributes
    ----------
    size : int
        Bytes of the whole file.

    Raises
    ------
    OSError
        From every method, when the file cannot be written.
    ValueError
        When a tensor is missing at the end, or its bytes are not those announced.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        *,
        alignment: int = ALIGNMENT,
    ) -> None:
        header: dict[str, Any] = {"__metadata__": metadata}
        places: dict[str, tuple[int, int]] = {}
        fillings, end = [], 0
        for name, (dtype, shape) in tensors.items():
            size = ITEM_BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            places[name] = (end, size)
            end += size
            if filling := -end % alignment:
                entry = {"dtype": "U8", "shape": [filling], "data_offsets": [end, end + filling]}
                header[f"{PADDING}{len(places)}"] = entry
                fillings.append((end, filling))
                end += filling
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._path = path
        self._header = len(text).to_bytes(8, "little") + text
        start = len(self._header)
        self.size = start + end
        self._places = {name: (start + begin, size) for name, (begin, size) in places.items()}
        self._fillings = [(start + begin, size) for begin, size in fillings]
        self._missing = dict(self._places)

    def __enter__(self) -> Self:
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            self._file.truncate(self.size)
            os.posix_fallocate(self._file.fileno(), 0, self.size)
            self._file.write(self._header)
            for begin, size in self._fillings:
                self._file.seek(begin)
                self._file.write(bytes(size))
        except OSError:
            self._file.close()
            raise
        return self

    def written(self, name: str) -> Iterator[bytes]:
        """Yield the bytes that stand in the place of a tensor, in pieces."""
        begin, left = self._places[name]
        while left:
            self._file.seek(begin)
            piece = self._file.read(min(left, READ_BYTES))
            yield piece
            begin, left = begin + len(piece), left - len(piece)

    def keep(self, name: str) -> None:
        """Take what stands in the place of a tensor for its bytes."""
        self._missing.pop(name)

    def write(self, name: str, parts: Iterable[NDArray[Any]]) -> None:
        """Write a tensor, given as arrays one after the other."""
        for part in parts:
            self.append(name, part)
        if name in self._missing:
            raise ValueError(f"{name}: {self._missing[name][1]} bytes are missing")

    def append(self, name: str, part: NDArray[Any]) -> None:
        """Write the bytes of a tensor that follow those written before; other tensors may come in between."""
        begin, left = self._missing.get(name, (0, 0))
        content = as_bytes(part)
        if content.nbytes > left:
            raise ValueError(f"{name}: {content.nbytes - left} bytes too many")
        self._file.seek(begin)
        self._file.write(content)
        self._file.flush()
        if content.nbytes == left:
            self._missing.pop(name, None)
        else:
            self._missing[name] = (begin + content.nbytes, left - content.nbytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.close()
            if self._missing:
                raise ValueError(f"tensors were not written: {', '.join(self._missing)}")
        with suppress(OSError):  # what is not flushed for lack of space has been reported
            self._file.close()


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
