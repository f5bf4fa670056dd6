"""Compiled kernels as files: written whole, and checked before anything in them is used.

A file begins with a checksum of what follows, belongs to the user, and nobody else can write to it. What is damaged is
compiled again, what cannot be written is not kept, and either is said once. Where the files are is `folder.py`'s
matter; what they hold is known to `loading.py`, and to `cache.py` for entries that Python calls.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit_kernels.compile.folder import belongs_to_user

logger = logging.getLogger(__name__)

_CHECKSUM = hashlib.sha256


def file_name(function: Callable[..., Any], *compiled_for: object) -> str:
    """Return the name, without suffix, of the file of an entry that is compiled for some types or some processor.

    The entry closes over no values, which the name would not tell.
    """
    code = function.__code__
    key = " ".join(map(str, (code.co_firstlineno, _source(code.co_filename), *compiled_for)))
    return f"{function.__module__}.{function.__name__}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@functools.cache
def _source(file: str) -> str:
    """A hash of a source: of a test's, since the folder's name does not show its edits."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def kept(file: Path) -> bytes | None:
    """Return what `keep` kept, None where there is nothing or it is damaged."""
    try:
        return read(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        _say_damaged(file.parent)
        return None


def keep(file: Path, content: bytes) -> None:
    """Write compiled code; where that fails, it serves this process alone."""
    try:
        write(file, content)
    except OSError as error:
        _say_not_kept(file.parent, error.strerror)


def read(file: Path) -> bytes:
    """Return what `write` wrote.

    Raises `OSError` if the file cannot be read, `ValueError` if it is damaged or somebody else can write to it.
    """
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode) or not belongs_to_user(status):
            raise ValueError(f"{file}: not a file that the user alone can write")
        checksum, content = opened.read(_CHECKSUM().digest_size), opened.read()
    if _CHECKSUM(content).digest() != checksum:
        raise ValueError(f"{file}: damaged")
    return content


def write(file: Path, content: bytes) -> None:
    """Let `file` hold `content` behind its checksum: all of it or, on `OSError`, nothing."""
    file.parent.mkdir(mode=0o700, exist_ok=True)  # another process may have pruned it
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
    try:
        with open(handle, "wb") as opened:
            opened.write(_CHECKSUM(content).digest() + content)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@functools.cache
def _say_damaged(folder: Path) -> None:
    logger.warning("compiled kernels in %s are damaged or not the user's alone: compiling them again", folder)


@functools.cache
def _say_not_kept(folder: Path, cause: str) -> None:
    logger.warning("compiled kernels are not kept in %s: %s", folder, cause)
