"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from quantkit.errors import OptionError

KIND = "int4"
"""The kind whose codes calibration finds."""
REFERENCE_KIND = "int8"
"""Of the same weights in the model that says what their inputs should be: it runs far faster than in f32, and what it
loses is a thirtieth of what int4 does."""
CALIBRATION_VERSION = 3
"""Goes up when the same weights become other bytes on the same text, so that no conversion goes on with old ones."""
METHODS = ("search", "layerwise", "end-to-end")
"""How codes are found: for the weights alone, for the outputs of each layer on a text, for the model's predictions."""


def arguments(calibration: Mapping[str, Any]) -> list[str]:
    """Return the options of `convert` that calibrate as a manifest says."""
    method = ["--method", "end-to-end"] if calibration.get("method") == "end-to-end" else []
    return ["--calibration", str(calibration.get("text")), *method]


def checked_method(method: str | None, calibration: str | os.PathLike[str] | None) -> str:
    """Return how codes are found, by default as it suits a text, or none; no file is read.

    Raises
    ------
    OptionError
        For another method than `METHODS`, one that does not go with the text, or one whose libraries are missing.
    """
    method = method or ("search" if calibration is None else "layerwise")
    if method not in METHODS:
        raise OptionError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    if method == "search" and calibration is not None:
        raise OptionError("method search reads no text: leave calibration out, or take another method")
    if method != "search" and calibration is None:
        raise OptionError(f"method {method} needs a text for calibration: a file, or builtin")
    missing = [name for name in ("torch", "transformers") if method == "end-to-end" and find_spec(name) is None]
    if missing:
        raise OptionError(f"method end-to-end needs {' and '.join(missing)}: pip install 'quantkit[end-to-end]'")
    return method
