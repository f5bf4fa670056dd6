"""A model of the hub at one commit: found by its name, its small files first; fetched when somebody wants all of it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError
from quantkit.formats.gguf.file import gguf_package
from quantkit.formats.hub.cache import Storage
from quantkit.formats.hub.client import constants, list_contents
from quantkit.formats.hub.contents import Contents, HubFile
from quantkit.formats.hub.names import HubError, HubName
from quantkit.formats.hub.parallel import download_all
from quantkit.formats.hub.transfer import check_sizes
from quantkit.formats.json_files import read_object
from quantkit.formats.output import CARD, PACKED_MANIFEST
from quantkit.formats.safetensors.folder import CONFIG, INDEX, SINGLE, read_config, read_index

logger = logging.getLogger(__name__)

CHECK_SECONDS = 3
"""How long the hub may take to say whether a model that is here has changed, at most."""

Check = Callable[[Mapping[str, Any]], object]
"""Raises `UnsupportedError` or `CheckpointError` for a `config.json` that cannot be used."""


class Download(NamedTuple):
    """How far a download is: the file that comes, bytes that are here, bytes in all."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class Snapshot:
    """A model of the hub at one commit.

    Attributes
    ----------
    contents : Contents
        What its repository holds, with its name and commit.
    needed : tuple of HubFile
        The files that the model consists of, here or not.
    """

    contents: Contents
    needed: tuple[HubFile, ...]

    @property
    def path(self) -> Path:
        """Where it is, or will be: a folder or a GGUF file."""
        folder = Storage(self.contents.name).snapshot(self.contents.commit)
        return folder / self.needed[0].name if self.contents.name.file else folder

    @property
    def is_packed(self) -> bool:
        """Whether quantkit wrote it."""
        return any(file.name == PACKED_MANIFEST for file in self.needed)

    def identity(self) -> str:
        """Return a SHA-256 of the names and contents of all files that decide what the model answers."""
        evidence = sorted((file.name, file.etag) for file in self.needed if file.name != CARD)
        return hashlib.sha256(json.dumps(evidence).encode()).hexdigest()

    def fetch(self, progress: Callable[[Download], None] | None = None) -> Path:
        """Download what is missing; returns `path`. `progress` is called as bytes arrive; errors as of `find`."""
        _fetch(self.contents, self.needed, progress)
        Storage(self.contents.name).remember(self.contents.commit)
        return self.path


def find(
    name: HubName,
    *,
    check: Check | None = None,
    progress: Callable[[Download], None] | None = None,
    weights: bool = True,
) -> Snapshot:
    """Ask the hub for a model, and download its small files; where it cannot be reached, take what is here.

    That all is here already, and unchanged, is known after one request.

    Parameters
    ----------
    name : HubName
    check : callable, optional
        Told the `config.json`; raises where the weights need not come.
    progress : callable, optional
        Called as bytes arrive.
    weights : bool
        Whether they are wanted, or the small files alone.

    Raises
    ------
    HubError
        The hub has no such model, cannot be reached, or does not give it; the message says what to do.
    UnsupportedError
        The extra `hub` is missing; the model is of a kind that quantkit does not read.
    CheckpointError
        The repository holds no model, or not all of one.
    """
    settings = constants(name)
    here = Storage(name).contents()
    timeout = settings.HF_HUB_ETAG_TIMEOUT
    try:
        contents = list_contents(name, min(timeout, CHECK_SECONDS) if here else timeout, known=here is not None)
    except HubError as cause:
        if here is None:
            raise
        try:
            found = _select(here, check, progress, weights)
        except CheckpointError as incomplete:
            raise HubError(f"{cause}; and the download that is here is not complete: {incomplete}") from cause
        if not settings.HF_HUB_OFFLINE:
            logger.warning("%s; using what was downloaded before", cause)
        return found
    return _select(contents, check, progress, weights)


def _select(
    contents: Contents, check: Check | None, progress: Callable[[Download], None] | None, weights: bool
) -> Snapshot:
    """Choose the files that a model needs. The small ones are downloaded, to see whether the others are worth it."""
    if contents.name.file:
        gguf_package()  # raises where it is missing
        parts = contents.gguf()
        return Snapshot(contents, tuple(parts if weights else parts[:1]))
    if not weights:
        return Snapshot(contents, tuple(contents.tokenizer()))
    folder = Storage(contents.name).snapshot(contents.commit)
    small, shards = contents.small(), set[str]()
    if INDEX in contents.files and SINGLE not in contents.files:
        small.append(contents.files[INDEX])
        _fetch(contents, small[-1:], progress)
        shards.update(read_index(folder / INDEX).values())
    needed = (*small, *contents.weights(shards))
    _fetch(contents, small, progress)
    config = read_object(folder / CONFIG) if PACKED_MANIFEST in contents.files else read_config(folder)[0]
    if check is not None:
        check(config)
    return Snapshot(contents, needed)


def _fetch(contents: Contents, files: Sequence[HubFile], progress: Callable[[Download], None] | None = None) -> None:
    """Bring files of a repository into the cache, unless they are there."""
    storage, done = Storage(contents.name), 0
    missing = [file for file in files if not storage.holds(contents.commit, file)]
    check_sizes(contents, missing, storage.blobs)
    different = {file.etag: file for file in missing}.values()
    total = sum(file.size for file in different)
    for file, count in download_all(contents, list(different), storage.blobs):
        done += count
        if progress:
            progress(Download(file.name, done, total))
    for file in missing:
        storage.link(contents.commit, file)
