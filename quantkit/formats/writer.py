"""Model folders written whole or not at all, and safetensors files streamed into them.

A folder grows as a hidden sibling of its target and is renamed when it is complete and on the disk, so whatever stops
the process leaves nothing that looks finished. What a killed process left behind is removed by the next one that writes
to the same target. `packed.py` and `dequantize.py` say what goes in; nothing is read here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import PackedModelError

ALIGNMENT = 64
"""Tensor data begins on a multiple of this: a cache line."""
PADDING = "padding."
"""Names of tensors that only fill: the format knows no holes."""
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output(path: str | os.PathLike[str], *, force: bool, source: Path) -> None:
    """Raise `PackedModelError` when a folder cannot be written at `path`; nothing is written.

    An existing folder is replaced with `force` alone, and only if it is a model's (files, config.json among them) that
    neither is nor holds the source: a slip of the pen must not delete anything else. An empty folder needs no force.
    """
    path, source = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    if path == source or path in source.parents:
        raise PackedModelError(f"{path}: holds the source itself; name another output")
    above = next((folder for folder in path.parents if folder.exists()), path)
    if not above.is_dir():
        raise PackedModelError(f"{path}: cannot be written: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PackedModelError(f"{path}: cannot be written: no permission to write in {above}")
    if os.path.ismount(path):
        raise PackedModelError(f"{path}: is a mount point, which cannot be renamed; name a folder in it")
    if not path.exists():
        return
    if not path.is_dir():
        raise PackedModelError(f"{path}: is a file; name another output")
    try:
        entries = list(path.iterdir())
    except OSError as cause:
        raise PackedModelError(f"{path}: cannot be read: {cause.strerror}") from cause
    if entries and not force:
        raise PackedModelError(f"{path}: exists already; name another output, or use --force to replace it")
    if entries and not ((path / "config.json").is_file() and all(entry.is_file() for entry in entries)):
        raise PackedModelError(f"{path}: is not a model folder, so --force does not replace it; name another output")


@contextmanager
def output_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends; an exception leaves nothing.

    What `check_output` accepted at `path` is moved away only when the new folder is complete. Missing parents are made.

    Raises
    ------
    PackedModelError
        When the folder cannot be written, whichever `OSError` says so inside the block: disk full, no permission, ...
    """
    target = Path(os.path.realpath(path))
    replace = target.exists()
    partial = _sibling(target, "partial")
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            partial.mkdir()
            stack.callback(shutil.rmtree, partial, ignore_errors=True)  # once published, it has another name
            lock = os.open(partial, os.O_RDONLY)
            stack.callback(os.close, lock)
            with suppress(OSError):  # network file systems may know no locks; nothing is taken for abandoned there
                fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends
            yield partial
            if target.exists() and not replace:
                raise PackedModelError(f"{path}: was written by another process meanwhile; it is left as it is")
            _publish(partial, target)
        except OSError as cause:
            fault = "the disk is full" if cause.errno in DISK_FULL else str(cause)
            raise PackedModelError(f"{path}: cannot be written: {fault}; nothing of it was kept") from cause


def _publish(partial: Path, target: Path) -> None:
    """Give a complete folder its name, once it is on the disk."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    replaced = _sibling(target, "replaced")
    if target.exists():
        target.rename(replaced)
    try:
        partial.rename(target)
    except OSError:
        with suppress(FileNotFoundError):
            replaced.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{what}"


def _remove_abandoned(target: Path) -> None:
    """Remove siblings that nobody holds a lock on: a process was killed while it wrote them."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(partial|replaced)")
    for folder in target.parent.iterdir():
        if not pattern.fullmatch(folder.name):
            continue
        with suppress(OSError):  # locked, or gone already
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


class SafetensorsWriter:
    """Streams tensors, in any order, into a safetensors file whose layout is known beforehand.

    The format (https://github.com/huggingface/safetensors#format) is a header and data without holes. The header is
    padded with spaces, so that the data begins on a multiple of 64 bytes; where a tensor ends on no multiple of
    `alignment`, a tensor `padding.N` of zeros follows it.

    Parameters
    ----------
    path : Path
        The file, which must not exist. Its size is claimed at once, so a full disk is noticed before any work.
    tensors : mapping of str to (str, tuple of int)
        dtype, as safetensors spells it, and shape of each tensor, in the order of the file.
    metadata : mapping of str to str
        The header's `__metadata__`.
    alignment : int
        1 where other tools read the file, which may refuse tensors that they don't know.

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
        places, end = {}, 0
        for name, (dtype, shape) in tensors.items():
            size = ITEM_BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            places[name] = (end, size)
            end += size
            if filling := -end % alignment:
                entry = {"dtype": "U8", "shape": [filling], "data_offsets": [end, end + filling]}
                header[f"{PADDING}{len(places)}"] = entry
                end += filling
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._path = path
        self._header = len(text).to_bytes(8, "little") + text
        self._size = len(self._header) + end
        self._missing = {name: (len(self._header) + begin, size) for name, (begin, size) in places.items()}

    def __enter__(self) -> Self:
        self._file = self._path.open("xb")
        try:
            os.posix_fallocate(self._file.fileno(), 0, self._size)
            self._file.write(self._header)
        except OSError:
            self._file.close()
            raise
        return self

    def write(self, name: str, parts: Iterable[NDArray[Any]]) -> None:
        """Write a tensor, given as arrays one after the other."""
        begin, size = self._missing.pop(name)
        self._file.seek(begin)
        for part in parts:
            size -= self._file.write(as_bytes(part))
        if size:
            raise ValueError(f"{name}: {size} bytes are missing")

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
