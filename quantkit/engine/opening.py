"""The door for whoever runs or converts a model, on this machine or on the hub; refused before its weights come.

`quantkit.formats` knows files and the hub, `quantkit.models` which configurations can be run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from quantkit import formats
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
) -> Path:
    """Return the path of a model on this machine, after a download if it is on the hub; see `formats.hub`."""
    return hub.local_path(path, check=registry.read, progress=progress, weights=weights)


def find_on_hub(name: hub.HubName) -> hub.Snapshot:
    """Find a model on the hub, and refuse it before its weights are downloaded; see `formats.hub`."""
    return hub.find(name, check=registry.read)
