"""A file in memory: mapped read-only, seen as arrays, its pages given back on demand.

It knows no format; `safetensors.py` and `gguf_file.py` decide which bytes are what, and check them first.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, QuantkitError


class MappedFile:
    """A read-only map of a whole file.

    Parameters
    ----------
    path : path of the file
    error : exception class for every fault of the file

    Attributes
    ----------
    size : bytes of the file
    bytes : the map, to be indexed and sliced like `bytes`
    """

    def __init__(self, path: str | os.PathLike[str], error: type[QuantkitError] = CheckpointError) -> None:
        self.path = Path(path)
        self._error = error
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                # An empty file cannot be mapped.
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as cause:
            raise self.fault(f"cannot be read: {cause.strerror or cause}") from cause
        if self.bytes[:8] == b"version ":
            raise self.fault("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")

    def fault(self, message: str) -> QuantkitError:
        """Return the file's error with a message that starts with its path."""
        return self._error(f"{self.path}: {message}")

    def view(self, dtype: str, shape: tuple[int, ...], begin: int) -> NDArray[Any]:
        """Return the bytes from `begin` on as a read-only array; the caller has checked that they are in the file."""
        array: NDArray[Any] = np.ndarray(shape, dtype, buffer=self.bytes, offset=begin)
        if not array.flags.aligned:  # no format here promises alignment; what computes on the numbers may need it
            array = array.copy()
            array.flags.writeable = False
        return array

    def release(self, begin: int, end: int) -> None:
        """Give the mapped pages of a range of bytes back to the system; a later access reads them again.

        For streaming readers: touched pages count as the process's memory until they are released.
        """
        start = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if isinstance(self.bytes, mmap.mmap) and end > start:
            self.bytes.madvise(mmap.MADV_DONTNEED, start, end - start)
