"""Whether disks have room for output folders, asked before any work."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from quantkit.errors import PackedModelError
from quantkit.formats.output import lock, resolved, siblings


def check_space(sizes: Mapping[Path, int]) -> None:
    """Raise `PackedModelError` when a disk lacks room for the folders that are to be written on it.

    What interrupted processes left beside a folder counts as room: it is gone on with, or removed. What a folder
    replaces does not: it goes when the new one is complete.

    Parameters
    ----------
    sizes : mapping of Path to int
        Bytes of each folder that is to be written.
    """
    disks: dict[int, list[Path]] = {}
    for path in sizes:
        disks.setdefault(_above(path).stat().st_dev, []).append(path)
    for paths in disks.values():
        needed, left = sum(sizes[path] for path in paths), sum(map(_left_behind, paths))
        room = free_bytes(paths[0]) + left
        if needed > room:
            raise PackedModelError(
                f"{paths[0]}: {_megabytes(needed)} are to be written, but the disk has room for {_megabytes(room)}; "
                "free some space or name another output"
            )


def free_bytes(path: Path) -> int:
    """Return the bytes that are free on the disk of a folder that exists or will be written."""
    return shutil.disk_usage(_above(path)).free


def _above(path: Path) -> Path:
    """Return the folder that exists and in which a path is, or will be."""
    return next(folder for folder in resolved(path).parents if folder.exists())


def _left_behind(path: Path) -> int:
    """Return the bytes that interrupted processes left beside a folder, on the disk."""
    found = 0
    for folder, _ in siblings(resolved(path)):
        with ExitStack() as stack, suppress(OSError):  # gone already, or another process works on it
            if lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB, stack):
                found += sum(512 * entry.stat(follow_symlinks=False).st_blocks for entry in os.scandir(folder))
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
