"""Output folders: which may be written or replaced, and how they appear complete or not at all.

A folder grows as a hidden sibling of its target, locked by its process. When it is complete and on the disk, one system
call gives it its name. A folder with contents is replaced only if quantkit's own manifest lists every file in it. What
an interrupted process left is gone on with by the next one that writes the same to the same target, and removed by one
that writes something else.

`space.py` asks for room on the disk, `journal.py` remembers what is finished. `packed/writer.py` and
`dequantization.py` say what goes in, `safetensors/writer.py` streams tensors into it; no model is known here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from quantkit.errors import PackedModelError
from quantkit.formats.json_files import read_file, read_object
from quantkit.formats.output.journal import JOURNAL, has_finished

logger = logging.getLogger(__name__)

WEIGHTS, CARD = "model.safetensors", "README.md"
PACKED_MANIFEST, UNPACKED_MANIFEST = "quantkit.json", "dequantized.json"
"""Files in which quantkit lists, as keys of `files`, what it wrote beside the weights: `convert`, `dequantize`."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What rename(2) says when its target is neither absent nor an empty folder."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, OSError)
"""What ends a command that may succeed when it is given again: signals, a full disk."""
PATIENCE = 10
"""Seconds to wait for another process that holds the lock of a folder."""


def check_outputs(paths: Iterable[str | os.PathLike[str]], *, force: bool, source: Path) -> None:
    """As `check_output`, for folders that are written at once; none may be in another."""
    others: list[Path] = []
    for path in map(resolved, paths):
        check_output(path, force=force, source=source)
        if any(path == other or path in other.parents or other in path.parents for other in others):
            raise PackedModelError(f"{path}: is another output as well, holds one or is in one; name another")
        others.append(path)


def check_output(path: str | os.PathLike[str], *, force: bool, source: Path) -> None:
    """Raise `PackedModelError` when a folder cannot be written at `path`; nothing is written.

    An empty folder needs no force. One with contents is replaced with `force` alone, and only if quantkit wrote every
    file in it and it neither is nor holds the source.
    """
    path, source = resolved(path), resolved(source)
    if path == source or path in source.parents:
        raise PackedModelError(f"{path}: holds the source itself; name another output")
    above = next((folder for folder in path.parents if folder.exists()), path)
    if not above.is_dir():
        raise PackedModelError(f"{path}: cannot be written: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PackedModelError(f"{path}: cannot be written: no permission to write in {above}")
    if os.path.ismount(path):
        raise PackedModelError(f"{path}: is a mount point, which cannot be renamed; name a folder in it")
    if not path.exists():
        return
    if not path.is_dir():
        raise PackedModelError(f"{path}: is a file; name another output")
    try:
        empty, stranger = not os.listdir(path), _stranger(path)
    except OSError as cause:
        raise PackedModelError(f"{path}: cannot be read: {cause.strerror}") from cause
    if not empty and not force:
        raise PackedModelError(f"{path}: exists already; name another output, or use --force to replace it")
    if stranger:
        raise PackedModelError(
            f"{path}: holds {stranger!r}, which quantkit did not write, so --force does not replace it; "
            "name another output"
        )


@contextmanager
def output_folder(path: str | os.PathLike[str], *, force: bool = False, key: str = "") -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends; an exception leaves nothing.

    Parameters
    ----------
    path : path
        Missing parents are made. What stands there is checked at the end, when the new folder is complete.
    force : bool
        Replace a folder with contents, if quantkit wrote all of them.
    key : str
        Of all that decides what the block writes, if it keeps a `journal`. Then what is finished stays when a signal or
        an `OSError` ends the block, since the same command may succeed later; and where it stayed, or a process was
        killed, the folder is yielded as it was left.

    Raises
    ------
    PackedModelError
        When something stands at `path` that may not be replaced; it is left as it is. When the folder cannot be
        written, whichever `OSError` says so inside the block: disk full, no permission, ...
    """
    target, partial = resolved(path), None
    with ExitStack() as stack:
        try:
            stack.callback(_remove_empty, [folder for folder in target.parents if not folder.exists()])
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = _left_behind(target, key, stack) or _locked_folder(target, stack)
            with _discarding(partial, key):
                yield partial
                _publish(partial, target, force=force)
        except OSError as cause:
            fault = "the disk is full" if cause.errno in DISK_FULL else str(cause)
            kept = "what is finished is kept: the same command goes on from there"
            rest = kept if partial and partial.exists() else "nothing of it was kept"
            raise PackedModelError(f"{path}: cannot be written: {fault}; {rest}") from cause


@contextmanager
def _discarding(partial: Path, key: str) -> Iterator[None]:
    """Remove a folder that is not completed, unless it was interrupted and can be gone on with."""
    try:
        yield
    except BaseException as cause:
        may_succeed_later = isinstance(cause, INTERRUPTIONS) or isinstance(cause.__cause__, OSError)
        if not may_succeed_later or not has_finished(partial, key):
            _discard(partial)
        elif isinstance(cause, KeyboardInterrupt | SystemExit):
            logger.info("interrupted: what is finished is kept in %s; the same command goes on from there", partial)
        raise


def write_files(folder: Path, files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Write small files, given as their bytes or the path of a copy; returns the SHA-256 of each, for the manifest."""
    digests = {}
    for name, source in files.items():
        content = source if isinstance(source, bytes) else read_file(source)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all, in the place of one of that name; raises `OSError`."""
    partial = _sibling(path, "partial")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON of ASCII characters alone: a lone surrogate, which a JSON file may hold, has no other form."""
    return (json.dumps(content, indent=2) + "\n").encode("ascii")


def resolved(path: str | os.PathLike[str]) -> Path:
    """Return the real path of an output, which need not exist."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def _stranger(folder: Path) -> str | None:
    """Return the name of an entry of a folder that quantkit did not write, None if there is none."""
    ours = _written_names(folder)
    return next((entry.name for entry in sorted(folder.iterdir()) if entry.name not in ours or entry.is_dir()), None)


def _written_names(folder: Path) -> set[str]:
    """Return the names of the files that quantkit wrote into a folder, as its manifest lists them."""
    for name in (PACKED_MANIFEST, UNPACKED_MANIFEST):
        with suppress(PackedModelError):
            match read_object(folder / name, PackedModelError):
                case {"quantkit_version": str(), "files": dict(files)}:
                    return {name, WEIGHTS, JOURNAL, *files}
    return set()


def _locked_folder(target: Path, stack: ExitStack) -> Path:
    """Make a hidden sibling of `target`, locked until the stack is closed."""
    while True:
        partial = _sibling(target, "partial")
        with ExitStack() as attempt:
            attempt.callback(_discard, partial)
            partial.mkdir()
            with suppress(FileNotFoundError):  # another process removed it before it was locked
                lock(partial, fcntl.LOCK_EX, stack)
                partial.stat()
                attempt.pop_all()
                return partial


def lock(folder: Path, mode: int, stack: ExitStack) -> bool:
    """Lock a folder until a stack is closed; `mode` is flock(2)'s.

    Returns whether it was possible. Some network file systems know no locks; there, no process takes the folder of
    another for abandoned. Raises `OSError` when there is no such folder, `BlockingIOError` when a lock is in the way of
    one that does not wait.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, mode)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _publish(partial: Path, target: Path, *, force: bool) -> None:
    """Give a complete folder its name, once it is on the disk."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    try:
        partial.rename(target)  # rename(2) puts a folder in the place of nothing or of an empty folder alone
    except OSError as cause:
        if cause.errno not in OCCUPIED:
            raise
        if not force or not target.is_dir():
            raise PackedModelError(f"{target}: was written by something else meanwhile; it is left as it is") from cause
        _replace(partial, target)
    (target / JOURNAL).unlink(missing_ok=True)
    _sync(target.parent)


def _replace(partial: Path, target: Path) -> None:
    """Exchange a complete folder with the one at `target`, if quantkit wrote all that is in it; remove that one."""
    with ExitStack() as stack:
        _lock_current(target, stack)  # once it has another name, nobody takes it for abandoned
        stranger = _stranger(target)
        if not stranger:
            replaced = _exchange(partial, target)
            stranger = _stranger(replaced)  # again, now that nothing more can come in by the target's name
            if stranger:
                replaced = _exchange(replaced, target)
            _sync(target.parent)
            _discard(replaced)
    if stranger:
        raise PackedModelError(f"{target}: holds {stranger!r}, which quantkit did not write; it is left as it is")


def _lock_current(target: Path, stack: ExitStack) -> None:
    """Lock the folder that is at `target` until a stack is closed.

    Whoever is just publishing or opening it is done in a moment. One that takes longer than `PATIENCE` is not waited
    for: what it has opened outlives the name.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with ExitStack() as attempt, suppress(BlockingIOError):
            found = target.stat()
            if not lock(target, fcntl.LOCK_EX | fcntl.LOCK_NB, attempt) or os.path.samestat(found, target.stat()):
                stack.enter_context(attempt.pop_all())
                return
        time.sleep(0.01)


def _exchange(new: Path, target: Path) -> Path:
    """Put a folder in the place of another; returns the path of the other.

    One system call where the system has it, so that there is a folder at `target` at all times. Else two, and a process
    killed between them leaves the old folder as a sibling, which the next writer to `target` puts back.
    """
    try:
        _rename_exchange(new, target)
        return new
    except OSError:  # not known to the system, or not to the file system
        replaced = _sibling(target, "replaced")
        target.rename(replaced)
        try:
            new.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
        return replaced


def _rename_exchange(a: Path, b: Path) -> None:
    """Exchange two names atomically (renameat2(2), since Linux 3.15 and glibc 2.28); raises `OSError`."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as cause:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from cause
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), a, None, b)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{what}"


def _discard(folder: Path) -> None:
    """Remove a hidden folder, unless it was a target, with a manifest, and holds what somebody else put there."""
    if not (_written_names(folder) and _stranger(folder)):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _left_behind(target: Path, key: str, stack: ExitStack) -> Path | None:
    """Return a sibling that an interrupted process left and that can be gone on with, locked until a stack is closed.

    Others that no process holds a lock on are removed, and an old folder that a killed process moved away is put back.
    """
    chosen = None
    for folder, what in siblings(target):
        with ExitStack() as attempt, suppress(OSError):  # gone already, or no folder
            if not lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB, attempt):
                continue
            if what == "replaced" and not target.exists():
                folder.rename(target)
            elif not chosen and _is_ours(folder) and has_finished(folder, key):
                stack.enter_context(attempt.pop_all())
                chosen = folder
            else:
                _discard(folder)
    return chosen


def siblings(target: Path) -> list[tuple[Path, str]]:
    """Return the hidden folders beside a target that are or were to become it, and what each is called: `partial`, or
    `replaced` where it has been the target.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(partial|replaced)", re.DOTALL)
    entries = list(target.parent.iterdir()) if target.parent.is_dir() else []
    return [(entry, found[1]) for entry in entries if (found := pattern.fullmatch(entry.name))]


def _is_ours(folder: Path) -> bool:
    """Whether a name is that of a folder, and of this user's: what others made is not written to."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
