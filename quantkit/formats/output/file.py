"""A file that a command writes for the user: checked before hours of work, and complete or not there.

Which file it is and what it holds is the caller's. Folders are the package's own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from quantkit.errors import OptionError
from quantkit.formats.output import resolved, write_file


def check_file(
    path: str | os.PathLike[str], *, what: str = "file", apart_from: Sequence[Path] = (), force: bool = False
) -> Path:
    """Return the path of a file that can be written; nothing is written.

    Parameters
    ----------
    path : path
    what : str
        What the file is called in messages.
    apart_from : sequence of Path
        Files that it may not be, and folders of models, in which it does not belong: what is read, or written besides.
    force : bool
        Whether it may replace another file.

    Raises
    ------
    OptionError
        For a folder that is missing or cannot be written, or a path that is taken.
    """
    file = _absolute(path)
    if not file.parent.is_dir():
        raise OptionError(f"{path}: cannot be written: {file.parent} is no folder")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise OptionError(f"{path}: cannot be written: no permission to write in {file.parent}")
    place, others = resolved(file), set(map(resolved, apart_from))
    if place in others:
        raise OptionError(f"{path}: is another file of this command as well; name another {what}")
    if not others.isdisjoint(place.parents):
        raise OptionError(f"{path}: belongs to a model; name another {what}")
    if file.is_dir():
        raise OptionError(f"{path}: exists already and is a folder; name another {what}")
    if file.exists() and not force:
        raise OptionError(f"{path}: exists already; name another {what}, or use --force to replace it")
    return file


def save_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that was checked; raises `OptionError` where the system refuses."""
    try:
        write_file(_absolute(path), content)
    except OSError as cause:
        raise OptionError(f"{path}: cannot be written: {cause.strerror or cause}") from cause


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
