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
    cells = [[one_line(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [table_line(row, widths, left=left, markdown=markdown) for row in cells]
    if markdown:
        lines.insert(1, table_rule(widths, left=left))
    return "\n".join(lines)


def table_line(cells: Iterable[str], widths: Sequence[int], *, left: int = 1, markdown: bool = False) -> str:
    """Return a line of a table whose widths are known before its rows are; for the options see `table`."""
    padded = [
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()


def table_rule(widths: Sequence[int], *, left: int = 1) -> str:
    """Return the line below the headers of a markdown table."""
    dashes = ("-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    return table_line(dashes, widths, left=left, markdown=True)


def one_line(text: str) -> str:
    """Return a text in one line, with its control characters spelled out."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")
