"""Names of models on the Hugging Face hub: `ORG/NAME`, with a revision `ORG/NAME@REVISION`, or a GGUF file of it.

What exists on this machine is a path, whatever it reads like. Nothing is asked of the hub here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from quantkit.errors import CheckpointError

DEFAULT_REVISION = "main"
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@:]+))?(:(?P<file>[^:]+))?", re.ASCII)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/?#:]+/[^/?#:]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?(?::(?P<tag>[^:/]+))?"
)
"""A page of the hub, as a browser shows it, or what Ollama and llama.cpp call a model of it."""
_FILE = re.compile(r".*\.(gguf|safetensors|json|model|tiktoken|bin|pth?)")
"""What ends like this is a file, and no repository."""
_SNAPSHOT = re.compile(r".*/models--(\w[\w.-]*?)--(\w[\w.-]*)/snapshots/[0-9a-f]{40}(/.*)?", re.ASCII)
"""Where the hub's cache keeps a model."""


class HubError(CheckpointError):
    """The hub cannot be reached, or does not give what was asked for."""


@dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Attributes
    ----------
    repo : str
        Its repository, `ORG/NAME`.
    revision : str
        A branch, a tag or a commit.
    file : str
        The GGUF file that is meant, or the words in its name by which it is known (`Q4_K_M`); nothing for the folder of
        safetensors.
    """

    repo: str
    revision: str = DEFAULT_REVISION
    file: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return f"{self.repo}{revision}{self.file and ':' + self.file}"


def hub_name(path: str | os.PathLike[str]) -> HubName | None:
    """Return the name on the hub that a text spells, None where it is a path: any `Path` is, and whatever exists.

    The address of a page of the hub is the name of what it shows.

    Raises
    ------
    CheckpointError
        It is another address.
    """
    if isinstance(path, str) and not os.path.lexists(path):
        path = _named_by(path)
    match = _NAME.fullmatch(path) if isinstance(path, str) else None
    if match is None or os.path.lexists(match[0]):
        return None
    repo = match["repo"]
    if "--" in repo or ".." in match[0] or _FILE.fullmatch(repo):
        return None
    return HubName(repo, match["revision"] or DEFAULT_REVISION, match["file"] or "")


def _named_by(text: str) -> str:
    """Return the name of what an address shows, and any other text as it is."""
    if match := _ADDRESS.fullmatch(text):
        return str(HubName(match["repo"], match["revision"] or DEFAULT_REVISION, match["tag"] or match["file"] or ""))
    if re.match(r"\w+://", text):
        raise CheckpointError(f"{text}: is no address of the Hugging Face hub; download it, and name the path")
    return text


def shown_name(path: str | os.PathLike[str]) -> str:
    """Return what a model is called: `ORG/NAME` where it lies in the hub's cache, else the last part of its path.

    A byte of a path that is not UTF-8 reads as U+FFFD.
    """
    absolute = os.path.abspath(path)
    if match := _SNAPSHOT.fullmatch(absolute):
        return f"{match[1]}/{match[2]}{':' + match[3][1:] if match[3] else ''}"
    return os.fsencode(os.path.basename(absolute)).decode("utf-8", "replace")
