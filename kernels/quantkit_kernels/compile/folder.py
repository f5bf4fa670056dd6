"""Where compiled kernels are kept on disk: one folder for each state of their sources and each instruction set.

It does not look for a place: `quantkit_kernels.cache_folder` names one. What the files hold is `cache.py`'s matter.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import quantkit_kernels

logger = logging.getLogger(__name__)


def kernel_folder(isa: str) -> Path | None:
    """Return the folder of kernels compiled with an instruction set, or None where nothing can be kept.

    Its name is a hash of what machine code depends on: the kernels' sources, the versions of numba, llvmlite and
    Python, and the instruction set.
    """
    place = quantkit_kernels.cache_folder
    return _made(place, isa) if place else None


@functools.cache
def _made(place: Callable[[str], Path], isa: str) -> Path | None:
    name = hashlib.sha256(_sources() + isa.encode()).hexdigest()[:16]
    try:
        folder = place(name)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        logger.warning("compiled kernels are not kept in %s: %s", error.filename, error.strerror)
        return None
    if not belongs_to_user(status):
        logger.warning("compiled kernels are not kept: other users can write to %s", folder)
        return None
    return folder


def belongs_to_user(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to the user of this process and nobody else can write to it."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


@functools.cache
def _sources() -> bytes:
    digest = hashlib.sha256(f"{sys.implementation.cache_tag}{sys.abiflags}".encode())
    for name in ("numba", "llvmlite"):
        digest.update(_version(name))
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(os.fsencode(path.relative_to(package)))
        digest.update(path.read_bytes())
    return digest.digest()


def _version(name: str) -> bytes:
    """The version of a package, without importing it."""
    found = find_spec(name)
    file = Path(found.origin).with_name("_version.py") if found and found.origin else None
    if file and file.is_file():
        return file.read_bytes()
    from importlib.metadata import version  # slow to import

    return version(name).encode()
