"""The progress bar that commands show on a terminal while they work."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from quantkit.cli.streams import printable

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """A progress bar that appears with the first unfinished step, on a terminal only, and vanishes at the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are done; `note` says what is at hand."""
        if self._progress is None and done < total and sys.stderr.isatty():
            self._progress = self._open()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, note=printable(note))

    def _open(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        note_column = TextColumn("{task.fields[note]}", markup=False)
        progress = Progress(*columns, note_column, console=Console(stderr=True), transient=True)
        self._task = progress.add_task(self._what, note="")
        progress.start()
        return progress

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()

    def __exit__(self, *_: object) -> None:
        self.close()
