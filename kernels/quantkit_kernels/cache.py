"""The user's cache folder: compiled kernels (`jit.py`), and models that the command line packed on the way.

Nothing in it is precious. Standard library only.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return a writable folder: `$QUANTKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/quantkit`, else `~/.cache/quantkit`.

    Where that cannot be written, a folder of the user's beside the temporary files; one warning says so.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return _writable(os.environ.get("QUANTKIT_CACHE_DIR") or os.path.join(base, "quantkit"))


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
