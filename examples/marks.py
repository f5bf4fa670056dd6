"""Puts text that a program wrote between the marks of a README: `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

import sys
from pathlib import Path


def rewrite(readme: str, mark: str, text: str) -> str:
    """Return a README with a text between its marks; ends the program where they are missing."""
    opening, closing = (f"<!-- {mark}: {side} -->" for side in ("begin", "end"))
    before, begin, rest = readme.partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end):
        sys.exit(f"the README lacks the marks {opening} and {closing}")
    return f"{before}{opening}\n{text}\n{closing}{after}"


def write(file: Path, mark: str, text: str) -> None:
    """Put a text between the marks of a file."""
    file.write_text(rewrite(file.read_text(), mark, text))
