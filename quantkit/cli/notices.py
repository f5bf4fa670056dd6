"""What commands show on stderr while they work, and how they read a text that a user names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from quantkit.errors import OptionError

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
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            note_column = TextColumn("{task.fields[note]}", markup=False)
            self._progress = Progress(*columns, note_column, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(self._what, note=note)
            self._progress.start()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()

    def __exit__(self, *_: object) -> None:
        self.close()


def read_text(file: Path) -> str:
    """Return the UTF-8 text of a file, or of stdin where the name is `-`."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
