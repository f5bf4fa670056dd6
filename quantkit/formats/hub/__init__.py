"""Models on the Hugging Face hub: `hub_name` reads a name, `find` asks for the model, which is then fetched.

`names.py` knows what a name is, `snapshot.py` finds and fetches what it names, `contents.py` knows which files a model
needs, `client.py` asks the hub, `transfer.py` brings a file and `parallel.py` several, `cache.py` says where they are
kept. Architectures are not known here: whoever asks brings the `check` of a configuration, by which a model is refused
before its weights come. All but `names.py` is imported for a name alone, and huggingface_hub too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantkit.formats.hub.names import HubError, HubName, hub_name, shown_name

if TYPE_CHECKING:
    from quantkit.formats.hub.snapshot import Check, Download, Snapshot, find

__all__ = ["Check", "Download", "HubError", "HubName", "Snapshot", "find", "hub_name", "shown_name"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.snapshot"), name)
