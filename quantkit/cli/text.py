"""How the commands lay out what they print: sizes and aligned tables, the same on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantkit.cli.streams import printable


def size(nbytes: float) -> str:
    """`nbytes` in decimal units with three digits: `90.5 MB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1, markdown: bool = False) -> str:
    """Return an aligned table: the first `left` columns flush left, the others flush right; a row is one line."""
    cells = [[_one_line(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    start, between, end = ("| ", " | ", " |") if markdown else ("", "  ", "")
    lines = [
        start
        + between.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + end
        for row in cells
    ]
    if markdown:
        rule = ("-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths))
        lines.insert(1, start + between.join(rule) + end)
    return "\n".join(line.rstrip() for line in lines)


def _one_line(text: str) -> str:
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")
