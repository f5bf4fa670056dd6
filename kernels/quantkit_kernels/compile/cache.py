"""Compiled kernels as files: written whole, and checked before anything in them is used.

numba's own cache unpickles whatever it finds and fails where it cannot write. Here a file begins with a checksum of
what follows, belongs to the user, and nobody else can write to it. What is damaged is compiled again, what cannot be
written is not kept, and either is said once. Where the files are is `folder.py`'s matter.

It relies on names that numba keeps to itself: importing it fails with `ImportError` where one is missing, and `jit.py`
does without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import logging
import os
import pickle
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from quantkit_kernels.compile.folder import belongs_to_user
from quantkit_kernels.compile.private import require

require(CompileResult, "_reduce", "_rebuild")

logger = logging.getLogger(__name__)

_CHECKSUM = hashlib.sha256


class KernelCache(NullCache):
    """Where numba's dispatcher of an entry looks for machine code and leaves it: one file for each signature.

    Parameters
    ----------
    function : callable
        The entry. It closes over no values, which the name of a file would not tell.
    folder : Path
        The folder of `kernel_folder`: it stands for the kernels' sources, the versions and the instruction set.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        self._folder = folder
        self._name = f"{function.__module__}.{function.__name__}"
        source = Path(inspect.getfile(function)).read_bytes()  # of a test: the folder's name does not show its edits
        self._identity = f"{function.__code__.co_firstlineno} {hashlib.sha256(source).hexdigest()}"

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return the compiled entry, or None if it must be compiled."""
        context.refresh()
        file = self._file(signature, context.codegen())
        try:
            content = read(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            _say_damaged(self._folder)
            return None
        return CompileResult._rebuild(context, *pickle.loads(content))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Write the compiled entry; where that fails, it serves this process alone."""
        if result.library.has_dynamic_globals:
            return
        try:
            write(self._file(signature, result.codegen), dumps(result._reduce()))
        except OSError as error:
            _say_not_kept(self._folder, error.strerror)

    def _file(self, signature: Any, codegen: Any) -> Path:
        key = f"{self._identity} {signature} {codegen.magic_tuple()}"
        return self._folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.nbc"


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
