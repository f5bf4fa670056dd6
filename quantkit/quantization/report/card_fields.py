"""What a checkpoint says of itself to model hubs: the fields at the top of its README.md, or a GGUF file's metadata.

The former are YAML, written by strangers. Hubs hold texts and lists of texts there, which are read without a parser of
YAML; everything else is left out. `card.py` takes over what is true of the packed model as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.formats.json_files import read_file
from quantkit.formats.output import CARD
from quantkit.formats.source import ModelSource

MAX_LINES = 1000
MAX_CHARS = 500
"""Of a line, and of a text."""
GGUF_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "license": "general.license",
        "license_name": "general.license.name",
        "license_link": "general.license.link",
        "language": "general.languages",
    }
)
"""Field of a card -> key of a GGUF file's metadata."""
GGUF_BASE = "general.base_model.0.repo_url"

Fields = Mapping[str, str | list[str]]


def card_fields(model: ModelSource) -> Fields:
    """Return the fields of a checkpoint that are texts or lists of texts, by the names that hubs have for them."""
    found = _front_matter(model.path) if model.metadata is None else _of_metadata(model.metadata)
    return {key: value for key, value in found.items() if _is_plain(value)}


def _of_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {field: metadata[key] for field, key in GGUF_KEYS.items() if key in metadata}
    base = re.fullmatch(r"https://huggingface\.co/([\w.-]+/[\w.-]+)", str(metadata.get(GGUF_BASE)))
    return found | ({"base_model": base[1]} if base else {})


def _front_matter(folder: Path) -> dict[str, Any]:
    """Return what stands between two lines `---` at the top of README.md."""
    try:
        text = read_file(folder / CARD).decode("utf-8-sig", "replace")
    except CheckpointError:  # there is none, or none that could be read
        return {}
    begin, *rest = text.splitlines()[:MAX_LINES] or [""]
    if begin.strip() != "---" or "---" not in rest:
        return {}
    fields: dict[str, str | list[str]] = {}
    key = ""
    for line in rest[: rest.index("---")]:
        if field := re.fullmatch(r"(\w+):(?:\s+(.*))?", line[: 2 * MAX_CHARS]):
            key, value = field[1], field[2] or ""
            listed = re.fullmatch(r"\[(.*)\]\s*", value)
            fields[key] = [_scalar(item) for item in listed[1].split(",")] if listed else _scalar(value)
        elif (item := re.fullmatch(r"\s*- (.*)", line)) and key and not (isinstance(fields[key], str) and fields[key]):
            fields[key] = [*(fields[key] or []), _scalar(item[1][: 2 * MAX_CHARS])]
    return fields


def _scalar(text: str) -> str:
    """Return a YAML scalar of one line as a text, without quotes and comment."""
    text = text.strip()
    quoted = re.match(r"""(["'])(.*?)\1\s*(#.*)?$""", text)
    return quoted[2] if quoted else re.split(r"\s#", text, maxsplit=1)[0].strip()


def _is_plain(value: Any) -> bool:
    """Whether a value, or each of a list, is a text of one line that is no other construct of YAML."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(
        isinstance(text, str) and text.isprintable() and 0 < len(text) <= MAX_CHARS and text[0] not in "|>&*!{[%@`"
        for text in texts
    )
