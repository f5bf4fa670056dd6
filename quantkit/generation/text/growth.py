"""How much longer a tokenizer may make a text: a `tokenizer.json` that explodes is refused before memory is gone.

A `tokenizer.json` rewrites text in steps: normalizer, pre-tokenizer, and on the way back decoder. Steps multiply: forty
that double a text make a terabyte of a letter. What a file's steps do at most is known from their definitions; where
that is no small number, a text is tried out in short slices, step by step, before the library sees it whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quantkit.errors import CheckpointError

MOST_GROWTH = 100
"""A text may become so many times as long, counted in characters. The worst honest one is 18 times (NFKC)."""
SLICE = 256
"""Characters of a text that are tried out at once."""
MOST_STEPS = 256
LONGEST_REPLACEMENT = 256
LONGEST_CHARSMAP = 2_000_000
"""Steps of a part; characters of what a step may write for a match, and of its table (base64). Published ones have a
dozen, 4 and 400,000."""

_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 3, "ByteLevel": 4}
"""What a step makes of a character at most; those that are not named here do not make more than one of it."""
_PARTS = ("normalizers", "pretokenizers", "decoders")


class Normalizer:
    """The `normalizer` section of a `tokenizer.json`, as far as it makes text longer.

    Parameters
    ----------
    section : Mapping or None
        The section; None where there is none.
    file : Path
        Named in errors.

    Raises
    ------
    CheckpointError
        When a step writes more at once than any honest one.
    """

    def __init__(self, section: Mapping[str, Any] | None, file: Path) -> None:
        steps = list(_steps(section))
        self._tried = [_opened(step) for step in steps] if _most_growth(steps, file) > MOST_GROWTH else []

    def explodes(self, text: str) -> bool:
        """Whether a part of the text would become more than `MOST_GROWTH` times as long."""
        for start in range(0, len(text) if self._tried else 0, SLICE):
            piece = text[start : start + SLICE]
            longest = MOST_GROWTH * len(piece) + LONGEST_REPLACEMENT
            for step in self._tried:
                piece = step.normalize_str(piece)
                if len(piece) > longest:
                    return True
        return False


def check_growth(section: Mapping[str, Any] | None, name: str, file: Path) -> None:
    """Raise `CheckpointError` when a pre-tokenizer or decoder may make a text more than `MOST_GROWTH` times as long."""
    if _most_growth(list(_steps(section)), file) > MOST_GROWTH:
        raise CheckpointError(f"{file}: its {name} can make a text more than {MOST_GROWTH} times as long")


def _steps(section: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if section is None:
        return
    parts = next((section[key] for key in _PARTS if key in section), None)
    if parts is None:
        yield section
    else:
        for part in parts:
            yield from _steps(part)


def _most_growth(steps: list[Mapping[str, Any]], file: Path) -> float:
    if len(steps) > MOST_STEPS:
        raise CheckpointError(f"{file}: rewrites text in {len(steps)} steps; it is damaged or hostile")
    growth = 1.0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
                growth *= max(1.0, _short(content, file) / len(pattern))
            case {"type": "Replace", "content": str(content)}:  # may match a single character, or between two
                growth *= 1 + _short(content, file)
            case {"type": "Prepend", "prepend": str(content)}:
                _short(content, file)
            case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
                if len(table) > LONGEST_CHARSMAP:
                    raise CheckpointError(f"{file}: has a table of {len(table)} characters; it is damaged or hostile")
                growth = float("inf")
            case {"type": str(kind)}:
                growth *= _GROWTH.get(kind, 1)
    return growth


def _short(content: str, file: Path) -> int:
    if len(content) > LONGEST_REPLACEMENT:
        raise CheckpointError(f"{file}: has a step that writes {len(content)} characters at once")
    return len(content)


def _opened(step: Mapping[str, Any]) -> Any:
    """Return the library's normalizer for a step; it opens such things as parts of a whole tokenizer alone."""
    whole = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": step}
    return Tokenizer.from_str(json.dumps(whole)).normalizer
