"""A report in a file of its own, as JSON or as an HTML page.

What can go wrong with the file is told by `check_report` before anything is packed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from quantkit.errors import OptionError
from quantkit.formats.output import as_json
from quantkit.formats.output.file import check_file, save_file
from quantkit.quantization.report import Report


def _page(report: Report) -> bytes:
    from quantkit.quantization.report.page import page  # needs jinja2

    return page(report)


FORMS: Mapping[str, Callable[[Report], bytes]] = MappingProxyType(
    {".json": lambda report: as_json(report.to_dict()), ".html": _page}
)
"""Suffix -> what makes the file's contents."""


def check_report(path: str | os.PathLike[str], *, apart_from: Sequence[Path] = (), force: bool = False) -> Path:
    """Return the path of a report that can be written; nothing is written.

    Parameters
    ----------
    path : path
    apart_from : sequence of Path
        As of `check_file`.
    force : bool
        Whether it may replace a file.

    Raises
    ------
    OptionError
        For a suffix that is not in `FORMS`, a folder that is missing or cannot be written, a path that is taken.
    """
    if Path(path).suffix not in FORMS:
        raise OptionError(f"{path}: a report's name ends in {' or '.join(FORMS)}")
    return check_file(path, what="report", apart_from=apart_from, force=force)


def save(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report, see `Report.save`."""
    file = check_report(path, force=True)
    save_file(path, FORMS[file.suffix](report))
