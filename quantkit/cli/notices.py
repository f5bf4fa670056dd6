"""What commands say on stderr while they work, and how they read a text that a user names.

A bar or counter appears on a terminal only; in a pipe commands are quiet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import click

from quantkit.errors import OptionError

COMPILE_SECONDS = 40
"""About what compiling all kernels takes on one core."""


def compiling() -> None:
    """Say why the start is slow, when kernels have to be compiled first; compiled ones are kept on disk."""
    from quantkit_kernels.interpreter import participate
    from quantkit_kernels.jit import is_compiled

    if not is_compiled(participate):
        click.echo(f"compiling kernels (once, about {COMPILE_SECONDS} s) ...", err=True)


class Counter:
    """A line on a terminal's stderr that counts: `evaluating 3/24  PPL 12.3456`; erased at the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Counter:
        return self

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are done."""
        if self._shown:
            click.echo(f"\r\x1b[K{self._what} {done}/{total}  {note}", err=True, nl=False)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def read_text(file: Path) -> str:
    """Return the UTF-8 text of a file, or of stdin where the name is `-`."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
