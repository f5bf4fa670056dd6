"""The hub's cache on this machine, as huggingface_hub lays it out, so that all its users share one copy of a file.

`models--ORG--NAME/` holds `blobs/`, files under their etags; `snapshots/COMMIT/`, links to them under their own names;
`refs/`, the commit that a branch or tag was at when it was last looked at.
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache)
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from quantkit.formats.hub.client import COMMIT, constants
from quantkit.formats.hub.contents import Contents, HubFile
from quantkit.formats.hub.names import HubName


class Storage:
    """Where the cache keeps a repository, whether or not it is there yet.

    Attributes
    ----------
    blobs : Path
    """

    def __init__(self, name: HubName) -> None:
        self._name = name
        self._folder = Path(constants(name).HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"
        self.blobs = self._folder / "blobs"

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files."""
        return self._folder / "snapshots" / commit

    def contents(self) -> Contents | None:
        """Return what is here of the revision, at the commit where it was last looked at; None if nothing is."""
        revision = self._name.revision
        commit = revision
        if not COMMIT.fullmatch(revision):
            try:
                commit = (self._folder / "refs" / revision).read_text().strip()
            except (OSError, ValueError):
                return None
        folder = self.snapshot(commit)
        if not COMMIT.fullmatch(commit) or not folder.is_dir():
            return None
        held = [path for path in folder.rglob("*") if path.is_file()]
        files = {str(path.relative_to(folder)): path for path in held}
        return Contents(
            self._name,
            commit,
            {name: HubFile(name, path.stat().st_size, _etag(path, commit)) for name, path in files.items()},
        )

    def holds(self, commit: str, file: HubFile) -> bool:
        """Whether a file is here in full."""
        try:
            return (self.snapshot(commit) / file.name).stat().st_size == file.size
        except OSError:
            return False

    def link(self, commit: str, file: HubFile) -> None:
        """Let a file of a commit be the blob that is here."""
        path, blob = self.snapshot(commit) / file.name, self.blobs / file.etag
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{uuid.uuid4().hex}")
        try:
            new.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # the file system knows no links
            new = blob
        os.replace(new, path)

    def remember(self, commit: str) -> None:
        """Note that the revision is at this commit, of which all is here; a cache that is read-only stays as it is."""
        if COMMIT.fullmatch(self._name.revision):
            return
        ref = self._folder / "refs" / self._name.revision
        with suppress(OSError):
            if not ref.exists() or ref.read_text() != commit:
                ref.parent.mkdir(parents=True, exist_ok=True)
                new = ref.with_name(f".{uuid.uuid4().hex}")
                new.write_text(commit)
                os.replace(new, ref)


def cache_folder() -> Path | None:
    """Return the folder of the hub's cache, None where huggingface_hub is not installed."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE)


def _etag(path: Path, commit: str) -> str:
    """The name of the blob that a file is; where it is no link, all that is known of it is its commit."""
    return os.path.basename(os.readlink(path)) if path.is_symlink() else commit
