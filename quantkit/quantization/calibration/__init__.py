"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
