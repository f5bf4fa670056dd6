"""The one decorator of the kernels: every compile flag, and the folder where compiled code is kept.

It is not a compiler: numba is. Kernels write `@jit`; the few functions that Python calls write `@jit(entry=True)`, and only
those are kept on disk, with everything they call inside them. numba notices edits of a cached function's own file alone,
so the folder's name carries a hash of all kernel sources, of the versions of numba and llvmlite, and of the instruction set.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
from numba.core import config

from .simd import ISA

logger = logging.getLogger(__name__)

FLAGS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
"""nogil: worker threads run at once. numpy: division has no zero test. No fastmath: results must not depend on its mood."""


def jit(function: Callable[..., Any] | None = None, *, entry: bool = False) -> Any:
    """Compile a kernel at its first call.

    Parameters
    ----------
    function : callable
        Takes and returns numbers and `simd` vectors; memory is passed as int64 addresses, never as arrays.
    entry : bool
        The function is called from Python: keep its machine code in `cache_folder()`.
    """
    if function is None:
        return functools.partial(jit, entry=entry)
    if not entry:
        return numba.njit(**FLAGS)(function)
    previous, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    try:
        return numba.njit(cache=True, **FLAGS)(function)
    finally:
        config.CACHE_DIR = previous


def is_compiled(function: Any) -> bool:
    """Whether an entry has machine code in memory or in the cache, so that calling it compiles nothing."""
    stem = f"{Path(function.py_func.__code__.co_filename).stem}.{function.py_func.__name__}-"
    return bool(function.signatures) or any(path.name.startswith(stem) for path in cache_folder().rglob("*.nbc"))


@functools.cache
def cache_folder() -> Path:
    """Folder of compiled kernels: `$QUANTKIT_CACHE_DIR/kernels/<hash>`, or a temporary one where that is unwritable."""
    root = os.environ.get("QUANTKIT_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "quantkit"
    )
    folder = Path(root) / "kernels" / _fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        # One folder per user, not per process: the next start finds the kernels again.
        fallback = Path(tempfile.gettempdir()) / f"quantkit-{os.getuid()}" / _fingerprint()
        fallback.mkdir(mode=0o700, parents=True, exist_ok=True)
        if fallback.stat().st_uid != os.getuid():
            fallback = Path(tempfile.mkdtemp(prefix="quantkit-"))
        logger.warning("cannot keep compiled kernels in %s (%s); using %s", folder, error.strerror, fallback)
        return fallback


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{numba.__version__} {version('llvmlite')} {ISA}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
