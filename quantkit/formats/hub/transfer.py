"""The download of one file from the hub into its cache, which is resumed where it was interrupted.

An incomplete file stands beside the blob that it becomes, locked while a process adds to it; its checksum must be the
one that the hub lists. huggingface_hub itself removes incomplete files, so that it cannot resume.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from quantkit.formats.hub.client import Unreachable, constants, explained, receive
from quantkit.formats.hub.contents import Contents, HubFile, gb
from quantkit.formats.hub.names import HubError

logger = logging.getLogger(__name__)

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further connection that follows one without a byte; then the download is given up."""
SUFFIX = ".quantkit.incomplete"
SHA256_DIGITS = 64
CHUNK = 1 << 20
"""Bytes that are read at a time of what is here."""


def is_here(blobs: Path, file: HubFile) -> bool:
    """Whether the cache has all of a file."""
    return (blobs / file.etag).is_file() and _size(blobs / file.etag) == file.size


def check_sizes(contents: Contents, files: Iterable[HubFile], blobs: Path) -> None:
    """Raise `HubError` where files are too large for the disk, or for a download by HTTP."""
    missing = {file.etag: file for file in files if not is_here(blobs, file)}
    for file in missing.values():
        if file.size > (most := constants(contents.name).MAX_HTTP_DOWNLOAD_SIZE):
            raise HubError(
                f"{contents.name}: {file.name} has {gb(file.size)}, and the hub sends no more than {gb(most)} in one "
                f"piece: get it with `hf download {contents.name.repo} {file.name}` first"
            )
    needed = sum(file.size - _size(blobs / f"{etag}{SUFFIX}") for etag, file in missing.items())
    folder = next(folder for folder in (blobs, *blobs.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(
            f"{blobs}: the download takes {gb(needed)}, and the disk has {gb(free)} left; "
            "make room, or let HF_HOME name a folder on another disk"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def download(contents: Contents, file: HubFile, blobs: Path, advance: Callable[[int], None]) -> None:
    """Bring a file into the cache, unless it is there.

    Parameters
    ----------
    contents : Contents
        Of the repository.
    file : HubFile
    blobs : Path
        The cache's folder of blobs.
    advance : callable
        Told how many more bytes are here, less than none where some have to be fetched again; it may raise, to end the
        download.

    Raises
    ------
    HubError
        The connection was lost and could not be made again, the file is not what the hub lists, or cannot be written.
    """
    blob, partial = blobs / file.etag, blobs / f"{file.etag}{SUFFIX}"
    if is_here(blobs, file):
        advance(file.size)
        return
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        with _alone(partial) as stream:
            if is_here(blobs, file):  # another process has finished it meanwhile
                advance(file.size)
                return
            _complete(contents, file, _Partial(contents, file, stream, advance))
            os.replace(partial, blob)
    except HubError:
        raise
    except OSError as cause:
        raise HubError(f"{blob}: cannot be written: {cause.strerror or cause}") from cause


@contextmanager
def _alone(path: Path) -> Iterator[io.FileIO]:
    """Open what is here of a file, or an empty one, alone: another process that adds to it is waited for.

    On file systems without locks nobody waits; should two add to the same file, its checksum tells. Nothing is
    buffered, so that an interrupt leaves all that was received.
    """
    with io.FileIO(path, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for another process, which downloads it", path)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            pass
        yield stream


class _Partial:
    """An incomplete file, with the checksum of what is here.

    Attributes
    ----------
    size : int
        Bytes that are here.
    advance : callable
        Told of them, see `download`.
    """

    def __init__(self, contents: Contents, file: HubFile, stream: io.FileIO, advance: Callable[[int], None]) -> None:
        self.size = 0
        self._contents, self._file, self._stream, self.advance = contents, file, stream, advance
        self._checksum = self._new_checksum()
        stream.seek(0)
        while chunk := stream.read(CHUNK):
            self._count(chunk)

    def add(self, chunk: bytes) -> None:
        """Write the bytes that come next."""
        left = memoryview(chunk)
        while left:
            left = left[self._stream.write(left) :]
        self._count(chunk)

    def restart(self) -> None:
        """Forget all bytes."""
        self._stream.truncate(0)
        self._checksum = self._new_checksum()
        self.advance(-self.size)
        self.size = 0

    def check(self) -> None:
        """Raise `HubError` unless this is the file that the hub lists; then nothing is kept of it."""
        if self._checksum.hexdigest() != self._file.etag:
            self._differs()

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._file.size:
            self._differs()
        self._checksum.update(chunk)
        self.advance(len(chunk))

    def _differs(self) -> NoReturn:
        self._stream.truncate(0)
        raise HubError(f"{self._contents.name}: {self._file.name} is not what the hub lists; start again")

    def _new_checksum(self) -> Any:
        if len(self._file.etag) == SHA256_DIGITS:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)  # as git names its files


def _complete(contents: Contents, file: HubFile, partial: _Partial) -> None:
    """Receive what is missing, over as many connections as it takes."""
    failures = 0
    while partial.size < file.size:
        before = partial.size
        partial.advance(0)
        try:
            with explained(contents.name), receive(contents, file, before) as (begin, chunks):
                if begin != before:
                    partial.restart()
                for chunk in chunks:
                    partial.add(chunk)
            if partial.size < file.size:
                raise Unreachable(f"{contents.name}: {file.name} ended too early")
        except Unreachable as cause:
            failures = failures + 1 if partial.size <= before else 0
            if failures > len(WAITS):
                here = f"{gb(partial.size)} of {gb(file.size)}"
                raise HubError(
                    f"{cause}; of {file.name} {here} are here, and the next start goes on from there"
                ) from cause
            time.sleep(WAITS[max(0, failures - 1)])
    partial.check()
