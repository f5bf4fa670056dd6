"""How tests call `quantkit`: in this process, by the fixture `invoke`, or as a program in a process of its own."""

from __future__ import annotations

import sys
from typing import Protocol

from click.testing import Result

PROGRAM = [sys.executable, "-m", "quantkit"]
"""The beginning of a command whose arguments are those of `quantkit`."""


class Invoke(Protocol):
    """Calls `quantkit` with some arguments; `input` is its stdin."""

    def __call__(self, *args: object, input: str | bytes | None = None) -> Result: ...
