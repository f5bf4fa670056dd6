"""The door for whoever runs or converts a model, on this machine or on the hub; refused before its weights come.

`quantkit.formats` knows files and the hub, `quantkit.models` which configurations can be run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from quantkit import formats
from quantkit.errors import PackedModelError, UnsupportedError
from quantkit.formats import ModelSource, hub
from quantkit.models import registry


def open_model(path: str | os.PathLike[str]) -> ModelSource:
    """Open a model: a folder, packed or not, a GGUF file, or a name on the hub; errors as of `formats.open`."""
    return formats.open(local_path(path))


def local_path(
    path: str | os.PathLike[str],
    *,
    progress: Callable[[hub.Download], None] | None = None,
    weights: bool = True,
    packed: bool | None = None,
) -> Path:
    """Return the path of a model on this machine, after downloading what is missing if it is one of the hub.

    Parameters
    ----------
    path : path or str
        What exists is a path, and so is every `Path`. Other texts of the form `ORG/NAME`, `ORG/NAME@REVISION`,
        `ORG/NAME:FILE.gguf` and `ORG/NAME@REVISION:FILE.gguf` name a model of the hub (extra `hub`), as does its
        page's address.
    progress : callable, optional
        Called as bytes arrive.
    weights : bool
        Whether they are wanted, or the small files alone.
    packed : bool, optional
        Whether a model of the hub has to be packed, or must not be; it is refused before it is downloaded.

    Raises
    ------
    QuantkitError
        The hub does not give the model, or the model is of a kind that quantkit does not run; see `formats.hub.find`.
    """
    name = hub.hub_name(path)
    if name is None:
        return Path(os.path.expanduser(path))
    snapshot = find_on_hub(name, progress=progress, weights=weights)
    if packed is True and not snapshot.is_packed:
        raise PackedModelError(f"{name}: is not a packed model; convert it first")
    if packed is False and snapshot.is_packed:
        raise UnsupportedError(f"{name}: is packed already; convert the checkpoint that it was made of")
    return snapshot.fetch(progress)


def find_on_hub(
    name: hub.HubName, *, progress: Callable[[hub.Download], None] | None = None, weights: bool = True
) -> hub.Snapshot:
    """Find a model on the hub, and refuse it before its weights are downloaded; see `formats.hub`."""
    return hub.find(name, check=registry.read, progress=progress, weights=weights)
