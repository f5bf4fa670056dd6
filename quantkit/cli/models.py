"""Models that commands are given: paths, or names on the hub, which are downloaded behind a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.progress import Bar

if TYPE_CHECKING:
    from quantkit.formats.hub import Download


def local_path(model: str, *, packed: bool | None = None) -> Path:
    """Return where a model is on this machine, once it is there; for `packed` see `engine.opening`."""
    from quantkit.engine import opening

    with Bar("downloading") as bar:
        return opening.local_path(model, progress=lambda now: show(bar, now), packed=packed)


def show(bar: Bar, now: Download) -> None:
    """Show how far a download is."""
    from quantkit.cli.text import size

    bar.update(now.done, now.total, f"{size(now.done)} of {size(now.total)}, {now.file}")
