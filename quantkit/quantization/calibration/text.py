"""The text that a model is calibrated on, as windows of tokens.

`layers.py` runs a model over them. What is measured later should be other text.

The built-in text, `builtin.jsonl`, is for those who have none at hand: 117,000 tokens (as SmolLM2 counts, and more than
100,000 with any tokenizer of today) in 291 documents, a line each. Of each `kind` there is, in tokens: prose 54 %
(encyclopedia, news, stories, letters, instructions, reviews, law, reports), language 14 % (56 passages in 30
languages), code 13 %, dialogue 12 % and mathematics 7 %. The kinds are interleaved, so that a part of the text has the
mix of the whole.

It was written for quantkit, mostly by a language model, and comes under quantkit's licence. Documents with a `source`
are in the public domain: passages of old books, and The World Factbook. Nothing is from a benchmark or from Wikipedia.
People and firms in news, letters, reports and dialogues are invented.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import GenerationError, OptionError
from quantkit.formats.output import as_json
from quantkit.formats.source import ModelSource
from quantkit.generation.text.tokenizer import Tokenizer

WINDOW_TOKENS = 512
"""Tokens of a window, or what a model has learned positions for if that is less."""
MOST_WINDOWS = 128
"""Windows that are taken of a text, at most: 65,536 tokens."""
LEAST_TOKENS = 1024
"""Tokens of a text without which it says too little of any model."""


BUILTIN = "builtin"
"""What names the built-in text."""
DATE = datetime(2025, 1, 1)
"""What chat templates that tell the date are told, so that a model is packed to the same bytes on each day."""


@dataclass(frozen=True)
class CalibrationText:
    """A text as a model reads it.

    Attributes
    ----------
    name : str
        Of its file.
    windows : list of list of int
        Token ids, as many in each window.
    digest : str
        SHA-256 of the text.
    """

    name: str
    windows: list[list[int]]
    digest: str

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return len(self.windows) * len(self.windows[0])

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest of a packed model says of it."""
        return {"text": self.name, "sha256": self.digest, "tokens": self.tokens}


def read_calibration_text(
    path: str | os.PathLike[str], source: ModelSource, learned_positions: int | None
) -> CalibrationText:
    """Cut a text into windows, spread evenly over it; each begins as the model's texts begin.

    Parameters
    ----------
    path : path
        UTF-8 text, or `builtin`.
    source : ModelSource
        The model, whose tokenizer reads the text.
    learned_positions : int, optional
        The most tokens that it can read, if there is a limit.

    Raises
    ------
    OptionError
        The text cannot be read or is too short, or the model has no tokenizer.
    """
    if "tokenizer.json" not in source.files:
        raise OptionError(f"calibration: {source.path} has no tokenizer.json, so it cannot read a text")
    tokenizer = Tokenizer({**source.files, "config.json": as_json(source.config)}, source.path)
    builtin, file = os.fspath(path) == BUILTIN, _file(path)
    raw = _read(file)
    ids = _builtin(raw, tokenizer) if builtin else _encode(raw.decode(), tokenizer)
    length = min(WINDOW_TOKENS, learned_positions or WINDOW_TOKENS)
    if len(ids) < LEAST_TOKENS:
        raise OptionError(
            f"calibration: {file} has {len(ids)} tokens; at least {LEAST_TOKENS} are needed, "
            f"and {MOST_WINDOWS * length} are better"
        )
    begin = tokenizer.encode("")
    size = length - len(begin)
    count = min(MOST_WINDOWS, len(ids) // size)
    starts = np.linspace(0, len(ids) - size, count).astype(int).tolist()
    windows = [begin + ids[start : start + size] for start in starts]
    return CalibrationText(BUILTIN if builtin else file.name, windows, hashlib.sha256(raw).hexdigest())


def check_calibration_file(path: str | os.PathLike[str]) -> None:
    """Raise what `read_calibration_text` raises of a file that cannot be read; no model is needed."""
    _read(_file(path))


def _file(path: str | os.PathLike[str]) -> Path:
    builtin = os.fspath(path) == BUILTIN
    return Path(__file__).with_name("builtin.jsonl") if builtin else Path(os.path.expanduser(path))


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        raw.decode()
    except OSError as error:
        raise OptionError(f"calibration: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"calibration: {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return raw


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def _builtin(raw: bytes, tokenizer: Tokenizer) -> list[int]:
    """The tokens of all documents; dialogues as the model's template writes them, if it has one that takes them."""
    ids: list[int] = []
    for document in map(json.loads, raw.splitlines()):
        if "text" in document:
            ids += _encode(document["text"] + "\n\n", tokenizer)
            continue
        messages = document["messages"]
        try:
            written = tokenizer.apply_chat_template(messages, add_generation_prompt=False, now=DATE)
        except GenerationError:
            ids += _encode("".join(f"{it['role'].capitalize()}: {it['content']}\n\n" for it in messages), tokenizer)
        else:
            ids += tokenizer.encode(written, add_special_tokens=False)
    return ids
