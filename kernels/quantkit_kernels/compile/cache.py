"""The user's cache folder: compiled kernels, and models that the command line packed on the way.

Nothing in it is precious. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return a writable folder: `$QUANTKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/quantkit`, else `~/.cache/quantkit`.

    Where that cannot be written, a folder of the user's beside the temporary files; one warning says so.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return _writable(os.environ.get("QUANTKIT_CACHE_DIR") or os.path.join(base, "quantkit"))


@functools.cache
def kernel_folder(isa: str) -> Path:
    """Return the folder of kernels compiled with an instruction set: `kernels/<hash>` in the cache.

    numba notices edits of a cached function's own file alone, so the name carries a hash of all kernel sources, of the
    versions of numba and llvmlite, and of the instruction set.
    """
    folder = cache_root() / "kernels" / hashlib.sha256(_sources() + isa.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _sources() -> bytes:
    digest = hashlib.sha256(f"{version('numba')} {version('llvmlite')}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.digest()


@functools.cache
def _writable(folder: str) -> Path:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Path(folder)
    except OSError as error:
        fallback = _beside_temporary_files()
        logger.warning("cannot write to the cache folder %s (%s): using %s", folder, error.strerror, fallback)
        return fallback


def _beside_temporary_files() -> Path:
    # One folder per user, not per process, so that the next start finds it; unless somebody else was there first.
    fallback = Path(tempfile.gettempdir()) / f"quantkit-{os.getuid()}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    entry = fallback.lstat()
    if entry.st_uid != os.getuid() or entry.st_mode & 0o077 or fallback.is_symlink():
        return Path(tempfile.mkdtemp(prefix="quantkit-"))
    return fallback
