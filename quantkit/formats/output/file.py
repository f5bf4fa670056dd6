"""A file that a command writes for the user: checked before hours of work, and complete or not there.

Which file it is and what it holds is the caller's. Folders are the package's own.
"""

from __future__ import annotations

import os
from pathlib import Path

from quantkit.errors import OptionError
from quantkit.formats.output import write_file


def check_file(
    path: str | os.PathLike[str], *, what: str = "file", apart_from: tuple[Path, ...] = (), force: bool = False
) -> Path:
    """Return the path of a file that can be written; nothing is written.

    Parameters
    ----------
    path : path
    what : str
        What the file is called in messages.
    apart_from : tuple of Path
        Folders or files of models, in which it does not belong.
    force : bool
        Whether it may replace a file.

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
    resolved = Path(os.path.realpath(file))
    if any(Path(os.path.realpath(other)) in (resolved, *resolved.parents) for other in apart_from):
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
