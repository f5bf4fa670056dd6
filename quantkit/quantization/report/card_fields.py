"""What a checkpoint's own model card says to model hubs: the fields at the top of its README.md.

They are YAML, written by strangers. Hubs hold texts and lists of texts there, which are read without a parser of YAML;
everything else is left out. `card.py` takes over what is true of the packed model as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from quantkit.errors import CheckpointError
from quantkit.formats.json_files import read_file
from quantkit.formats.output import CARD

MAX_CHARS = 500
"""Of a text."""


def card_fields(folder: Path) -> Mapping[str, str | list[str]]:
    """Return the fields at the top of a checkpoint's own README.md: texts and lists of texts; others are left out.

    They stand between two lines `---`, as YAML. Hubs hold simple ones there, which are read without a parser of YAML.
    """
    try:
        text = read_file(folder / CARD).decode("utf-8-sig", "replace")
    except CheckpointError:  # there is none, or none that could be read
        return {}
    begin, *rest = text.splitlines() or [""]
    if begin.strip() != "---" or "---" not in rest:
        return {}
    fields: dict[str, str | list[str]] = {}
    key = ""
    for line in rest[: rest.index("---")]:
        if field := re.fullmatch(r"(\w+):(?:\s+(.*))?", line):
            key, value = field[1], field[2] or ""
            listed = re.fullmatch(r"\[(.*)\]\s*", value)
            fields[key] = [_scalar(item) for item in listed[1].split(",")] if listed else _scalar(value)
        elif (item := re.fullmatch(r"\s*- (.*)", line)) and key and not (isinstance(fields[key], str) and fields[key]):
            fields[key] = [*(fields[key] or []), _scalar(item[1])]
    return {key: value for key, value in fields.items() if _is_plain(value)}


def _scalar(text: str) -> str:
    """Return a YAML scalar of one line as a text, without quotes and comment."""
    text = text.strip()
    quoted = re.match(r"""(["'])(.*?)\1\s*(#.*)?$""", text)
    return quoted[2] if quoted else re.split(r"\s#", text, maxsplit=1)[0].strip()


def _is_plain(value: str | list[str]) -> bool:
    """Whether a value, or each of a list, is a text of one line that is no other construct of YAML."""
    texts = [value] if isinstance(value, str) else value
    return bool(texts) and all(
        text.isprintable() and 0 < len(text) <= MAX_CHARS and text[0] not in "|>&*!{[%@`" for text in texts
    )
