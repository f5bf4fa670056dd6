"""The user's cache folder: models that `run` packed on the way, compiled kernels, measured bandwidths.

It says where the folder is, uses none that other users can write to, and removes entries that nobody used for a month.
What an entry holds is known to whoever asks for it: `cli`, `evaluation/benchmark.py`, and `quantkit_kernels`, which
never imports `quantkit` and is given `entry` to ask with. Nothing in the folder is precious. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

UNUSED_DAYS = 30
"""An entry that was not used for so long is removed."""


def root() -> Path:
    """Return the folder: `$QUANTKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/quantkit`, else `~/.cache/quantkit`.

    A folder that is missing is made, for the user alone. Where it cannot be written, or other users could write to it,
    `quantkit-<uid>` beside the temporary files takes its place, and where that cannot be trusted either, a new folder
    that is removed when the process ends. One warning says so.

    Raises
    ------
    OSError
        Not even a temporary folder can be made.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    default = os.path.join(base if os.path.isabs(base) else "~/.cache", "quantkit")
    return _usable(os.path.expanduser(os.environ.get("QUANTKIT_CACHE_DIR") or default))


def entry(kind: str, name: str) -> Path:
    """Return the path of the entry `name` of a kind (`models`, `sources`, `kernels`, `sensitivities`, `inputs`).

    Whoever asks makes it if it is missing. An entry that exists counts as used now. The others of its kind that nobody
    used for `UNUSED_DAYS` are removed.

    Raises
    ------
    OSError
        The folder of this kind cannot be written, or other users can write to it.
    """
    folder = _private(root() / kind)
    path = folder / name
    with contextlib.suppress(OSError):  # it does not exist yet
        os.utime(path)
    prune(folder)
    return path


def prune(folder: Path) -> None:
    """Remove the entries of `folder`, files and folders, that nobody used for `UNUSED_DAYS`.

    An entry was last used when it was last changed or asked for by `entry`. What cannot be removed stays.
    """
    import shutil
    import time

    oldest = time.time() - UNUSED_DAYS * 24 * 60 * 60
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_mtime < oldest:
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()


@functools.cache
def _usable(name: str) -> Path:
    try:
        if name.startswith("~"):
            raise FileNotFoundError(errno.ENOENT, "the user has no home folder", name)
        return _private(Path(name))
    except OSError as error:
        folder = _temporary()
        logger.warning("cannot use the cache folder %s (%s): using %s", name, error.strerror, folder)
        return folder


def _temporary() -> Path:
    """A folder beside the temporary files: the same at each start, unless somebody else has taken its name."""
    import tempfile

    try:
        return _private(Path(tempfile.gettempdir()) / f"quantkit-{os.getuid()}")
    except OSError:
        import atexit
        import shutil

        folder = Path(tempfile.mkdtemp(prefix="quantkit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder


def _private(folder: Path) -> Path:
    """Return the real path of a folder, made if it is missing, which the user can write to and nobody else.

    Raises `OSError` if it cannot be made, written or trusted. Nobody else may be able to put another in its place, so
    its parents belong to the user or the system, and others cannot rename what is in them.
    """
    folder = Path(os.path.realpath(folder))
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
        fault = _fault(path) if path == folder else _fault_of_parent(path)
        if fault:
            raise PermissionError(errno.EPERM, fault, str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no permission to write to it", str(folder))
    return folder


def _fault(folder: Path) -> str | None:
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is not a folder"
    if status.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if status.st_mode & 0o022:
        return f"other users can write to {folder}; chmod go-w takes that from them"
    return None


def _fault_of_parent(folder: Path) -> str | None:
    status = folder.stat()
    if status.st_uid not in (os.getuid(), 0, os.stat("/").st_uid):  # in some sandboxes the system is not root's
        return f"{folder} belongs to another user"
    writable = status.st_mode & (0o002 if _is_private_group(status.st_gid) else 0o022)
    if writable and not status.st_mode & stat.S_ISVTX:  # with the sticky bit, entries are their owners'
        return f"other users can write to {folder}"
    return None


def _is_private_group(number: int) -> bool:
    """Whether the group is the user's alone, as many systems make one for each user."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return user.pw_gid == number and user.pw_name == group.gr_name and set(group.gr_mem) <= {user.pw_name}
