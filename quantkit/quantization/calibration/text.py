"""The text that a model is calibrated on, as windows of tokens.

`layers.py` runs a model over them. What is measured later should be other text.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import OptionError
from quantkit.formats.output import as_json
from quantkit.formats.source import ModelSource
from quantkit.generation.text.tokenizer import Tokenizer

WINDOW_TOKENS = 512
"""Tokens of a window, or what a model has learned positions for if that is less."""
MOST_WINDOWS = 96
"""Windows that are taken of a text, at most: 49,152 tokens. Twice as many lower SmolLM2's divergence by a hundredth."""
LEAST_TOKENS = 1024
"""Tokens of a text without which it says too little of any model."""


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
    """Cut a text file into windows, spread evenly over it; each begins as the model's texts begin.

    Parameters
    ----------
    path : path
        UTF-8 text.
    source : ModelSource
        The model, whose tokenizer reads the text.
    learned_positions : int, optional
        The most tokens that it can read, if there is a limit.

    Raises
    ------
    OptionError
        The text cannot be read or is too short, or the model has no tokenizer.
    """
    path = Path(os.path.expanduser(path))
    if "tokenizer.json" not in source.files:
        raise OptionError(f"calibration: {source.path} has no tokenizer.json, so it cannot read {path}")
    tokenizer = Tokenizer({**source.files, "config.json": as_json(source.config)}, source.path)
    raw = _read(path)
    ids = tokenizer.encode(raw.decode(), add_special_tokens=False, split_special_tokens=True)
    length = min(WINDOW_TOKENS, learned_positions or WINDOW_TOKENS)
    if len(ids) < LEAST_TOKENS:
        raise OptionError(
            f"calibration: {path} has {len(ids)} tokens; at least {LEAST_TOKENS} are needed, "
            f"and {MOST_WINDOWS * length} are better"
        )
    begin = tokenizer.encode("")
    size = length - len(begin)
    count = min(MOST_WINDOWS, len(ids) // size)
    starts = np.linspace(0, len(ids) - size, count).astype(int).tolist()
    windows = [begin + ids[start : start + size] for start in starts]
    return CalibrationText(path.name, windows, hashlib.sha256(raw).hexdigest())


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        raw.decode()
    except OSError as error:
        raise OptionError(f"calibration: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"calibration: {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return raw
