"""A file of weights: mapped read-only and seen as arrays, or read into memory where a copy is safer.

A map is the fastest way to weights, and the process dies of SIGBUS when the file behind it is truncated; a checked read
raises an error instead. No format is known here; `safetensors/` and `gguf/` decide which bytes are what, and check
them first. Small files are read by `json_files.py`.
"""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, QuantkitError


class Entry(NamedTuple):
    """Where a tensor lies in a file: type in the format's spelling, shape with the rows first, first byte and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def part(self, entries: slice) -> Entry:
        """Where some entries of its first axis lie, one after the other, such as some rows."""
        first, last, _ = entries.indices(self.shape[0])
        size = (self.end - self.begin) // max(1, self.shape[0])
        return Entry(self.dtype, (last - first, *self.shape[1:]), self.begin + first * size, self.begin + last * size)


def open_regular(path: str | os.PathLike[str], error: type[QuantkitError] = CheckpointError) -> int:
    """Return a descriptor of a file open for reading; raises `error` for what is missing or no regular file.

    Opening a pipe would wait for its writer, and opening a device may act, so neither is opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error(f"{path}: is not a regular file")
        # O_NONBLOCK: it may have become a pipe since.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    except ValueError as cause:  # a null character in the path
        raise error(f"{path!r}: is not a path: {cause}") from cause


class MappedFile:
    """A read-only map of a whole file, which stays open as long as it lives.

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
        self._descriptor = open_regular(path, error)
        weakref.finalize(self, os.close, self._descriptor)
        try:
            self._opened = os.fstat(self._descriptor)
            self.size = self._opened.st_size
            # An empty file cannot be mapped.
            self.bytes = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as cause:
            raise self.fault(f"cannot be read: {cause.strerror or cause}") from cause

    def fault(self, message: str) -> QuantkitError:
        """Return the file's error with a message that starts with its path."""
        return self._error(f"{self.path}: {message}")

    def view(self, dtype: str, shape: tuple[int, ...], begin: int) -> NDArray[Any]:
        """Return the bytes from `begin` on as a read-only array; the caller has checked that they are in the file.

        Raises the file's error when the file has another size than it was opened with.
        """
        if os.fstat(self._descriptor).st_size != self.size:
            raise self.fault("has changed its size since it was opened")
        array: NDArray[Any] = np.ndarray(shape, dtype, buffer=self.bytes, offset=begin)
        if not array.flags.aligned:  # no format here promises alignment; what computes on the numbers may need it
            array = array.copy()
            array.flags.writeable = False
        return array

    def read(self, dtype: str, shape: tuple[int, ...], begin: int) -> NDArray[Any]:
        """Return what `view` returns, as a copy that needs the file no more; a truncated file raises its error."""
        array = np.empty(shape, dtype)
        left = array.reshape(-1).view(np.uint8).data
        while left:
            try:
                count = os.preadv(self._descriptor, [left], begin)
            except OSError as cause:
                raise self.fault(f"cannot be read: {cause.strerror or cause}") from cause
            if not count:
                raise self.fault(f"was truncated while it was read: it ends before byte {begin + len(left)}")
            left, begin = left[count:], begin + count
        return array

    def identity(self) -> bytes:
        """Return what tells this file from every other one, and from itself after a change, without reading it whole.

        The time of the last change of its inode is part of it: unlike the time of the last modification, no program
        sets it back.
        """
        found = self._opened
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_dev} {found.st_ino}".encode()
