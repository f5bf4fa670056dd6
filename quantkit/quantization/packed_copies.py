"""Packed copies of models that are run as they were downloaded, in the user's cache folder.

A copy is found again by all that decides its bytes: the model, the recipe, the encoder and the format. When a model
changed, its new copy replaces the old one; those that nobody used for a month are removed by `user_cache.py`. A model
of the hub is known by the checksums of its files: its copy serves whether or not the download is still there, and runs
where the hub cannot be reached. What was packed with `convert` is used where it stands.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from quantkit import formats, user_cache
from quantkit.engine.opening import find_on_hub
from quantkit.errors import CheckpointError, OptionError, PackedModelError
from quantkit.formats import hub
from quantkit.formats.json_files import read_object
from quantkit.formats.output import as_json, lock
from quantkit.formats.packed import FORMAT_VERSION, PackedModel, is_packed
from quantkit.quantization.encode import ENCODER_VERSION
from quantkit.quantization.recipe import MIXED

if TYPE_CHECKING:
    from quantkit.quantization.report import Progress

logger = logging.getLogger(__name__)

RECIPE = MIXED
_UNFINISHED = re.compile(r"\.([0-9a-f-]+)\.[0-9a-f]{8}\.partial")
"""Name of a folder that becomes a copy."""


@dataclass(frozen=True)
class PackedCopy:
    """A packed model in the cache, or what is left of one whose packing was interrupted, which is gone on with.

    Attributes
    ----------
    name : str
        What was run: the path of a checkpoint, or a name on the hub.
    source : str
        What that is: a folder, a file, or a commit on the hub.
    kind : str
        What it was packed to.
    complete : bool
        Whether it is not only a part.
    nbytes : int
        Bytes on disk.
    used : float
        When it was last used, in seconds since 1970.
    path : Path
        Its folder.
    """

    name: str
    source: str
    kind: str
    complete: bool
    nbytes: int
    used: float
    path: Path


class _Source(NamedTuple):
    """A model that is to be run.

    `fetch` returns where it is, after a download if need be; `identity` is another one when any byte is; one that is
    packed needs none.
    """

    name: str
    about: str
    fetch: Callable[[], Path]
    identity: str = ""


@contextmanager
def packed_copy(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    downloading: Callable[[hub.Download], None] | None = None,
) -> Iterator[Path]:
    """Yield the packed folder of a model: `path` itself, or a copy in the cache, packed at its first use.

    While the block runs, no other process removes the copy. A model that was opened in the block works after it, since
    mapped files outlive their names.

    Parameters
    ----------
    path : path or str
        A packed folder, a Hugging Face folder, a GGUF file, or a name on the hub.
    threads, progress
        For the conversion, see `convert`.
    downloading : callable, optional
        Called as bytes arrive from the hub.

    Raises
    ------
    QuantkitError
        As `convert`.
    """
    with ExitStack() as stack:
        try:
            source = _source(path, downloading)
        except hub.HubError as cause:
            folder = _newest(path, stack)
            if folder is None:
                raise
            logger.warning("%s; using what was packed before", cause)
        else:
            folder = _copy_of(source, stack, threads, progress) if source.identity else source.fetch()
        yield folder


def list_copies() -> list[PackedCopy]:
    """Return all packed models in the cache, the one that was used last first."""
    folder = user_cache.root() / "models"
    entries = [(entry, _UNFINISHED.fullmatch(entry.name)) for entry in (folder.iterdir() if folder.is_dir() else ())]
    found = [
        _described(entry, unfinished[1] if unfinished else entry.name, complete=not unfinished)
        for entry, unfinished in entries
        if unfinished or (is_packed(entry) and not entry.name.startswith("."))
    ]
    return sorted(found, key=lambda copy: -copy.used)


def remove_copies(names: Sequence[str]) -> list[PackedCopy]:
    """Remove packed models from the cache; what they were made of stays.

    Parameters
    ----------
    names : sequence of str
        As `list_copies` has them.

    Returns
    -------
    list of PackedCopy
        Those that were removed.

    Raises
    ------
    OptionError
        There is none of a name; nothing is removed.
    PackedModelError
        One is just being made or opened by another process, or cannot be removed.
    """
    copies = list_copies()
    for name in names:
        if name not in {copy.name for copy in copies}:
            raise OptionError(f"{name}: no packed model of this name is in the cache; see `quantkit list`")
    removed = [copy for copy in copies if copy.name in names]
    for copy in removed:
        try:
            with ExitStack() as stack:
                lock(copy.path, fcntl.LOCK_EX | fcntl.LOCK_NB, stack)
                shutil.rmtree(copy.path)
                _record(copy.path.name).unlink(missing_ok=True)
        except BlockingIOError:
            raise PackedModelError(f"{copy.name}: is in use by another process; try again") from None
        except OSError as cause:
            raise PackedModelError(f"{copy.path}: cannot be removed: {cause.strerror or cause}") from cause
    return removed


def _source(path: str | os.PathLike[str], downloading: Callable[[hub.Download], None] | None) -> _Source:
    """Find a model; raises as `formats.open` and `formats.hub.find`."""
    name = hub.hub_name(path)
    if name is None:
        local = Path(os.path.expanduser(path))
        about = "folder" if local.is_dir() else "file"
        identity = "" if is_packed(local) else formats.open(local).identity()
        return _Source(os.path.realpath(local), about, lambda: local, identity)
    snapshot = find_on_hub(name, progress=downloading)
    about = f"hub, commit {snapshot.contents.commit[:8]}"
    return _Source(
        str(name), about, partial(snapshot.fetch, downloading), "" if snapshot.is_packed else snapshot.identity()
    )


def _copy_of(
    source: _Source, stack: ExitStack, threads: int | None, progress: Callable[[Progress], None] | None
) -> Path:
    """Return the copy of a model, locked until the stack is closed; it is made if it is missing or damaged."""
    folder = user_cache.entry("models", f"{_prefix(source.name)}-{_digest(source.identity)[:32]}")
    user_cache.entry("sources", _record(folder.name).name).write_bytes(
        as_json({"name": source.name, "source": source.about})
    )
    if not _held(folder, stack):
        path = source.fetch()
        logger.info("packing %s, once, into %s ...", path, folder)
        # Another process may have been faster. Its copy has the same bytes, and is replaced by one system call.
        from quantkit.quantization.conversion import convert  # of no use to a model that is packed

        convert(path, folder, RECIPE, threads=threads, progress=progress, force=True)
        _held(folder, stack)
        _remove_older(folder, source.name)
    return folder


def _newest(path: str | os.PathLike[str], stack: ExitStack) -> Path | None:
    """Return the copy of a model of the hub that was used last, locked, None if there is none."""
    prefix = _prefix(str(hub.hub_name(path)))
    for copy in [copy for copy in list_copies() if copy.path.name.startswith(f"{prefix}-")]:
        if _held(user_cache.entry("models", copy.path.name), stack):
            return copy.path
    return None


def _prefix(name: str) -> str:
    """How the names of a model's copies begin that are packed as they are today."""
    return f"{_digest(name)[:16]}-{_digest(RECIPE, ENCODER_VERSION, FORMAT_VERSION)[:8]}"


def _digest(*decisive: object) -> str:
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _record(copy: str) -> Path:
    """Where it is written what a copy is made of."""
    return user_cache.root() / "sources" / f"{copy}.json"


def _described(folder: Path, copy: str, *, complete: bool) -> PackedCopy:
    record = {}
    with suppress(CheckpointError):
        record = read_object(_record(copy))
    return PackedCopy(
        name=str(record.get("name", copy)),
        source=str(record.get("source", "")),
        kind=RECIPE,
        complete=complete,
        nbytes=sum(512 * file.stat().st_blocks for file in folder.iterdir()),
        used=folder.stat().st_mtime,
        path=folder,
    )


def _held(folder: Path, stack: ExitStack) -> bool:
    """Lock a copy against removal until the stack is closed; returns whether there is one, and sound."""
    if not is_packed(folder):
        return False
    with ExitStack() as attempt:
        try:
            lock(folder, fcntl.LOCK_SH, attempt)
            PackedModel(folder)
        except (OSError, PackedModelError) as cause:
            logger.info("%s: packed again, since the copy cannot be used: %s", folder, cause)
            return False
        stack.enter_context(attempt.pop_all())
    return True


def _remove_older(folder: Path, name: str) -> None:
    """Remove the copies of what the source was before, unless another process is just opening or making one."""
    for other in (path for hidden in ("", ".") for path in folder.parent.glob(f"{hidden}{_digest(name)[:16]}-*")):
        if other != folder:
            with ExitStack() as stack, suppress(OSError):
                if lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB, stack):
                    shutil.rmtree(other)
                    logger.info("removed %s, the packed copy of what this model was before", other)
