"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

from collections.abc import Mapping
from types import MappingProxyType

BUILTIN = "builtin"
"""What names the built-in text."""
CALIBRATED = ("int4", "int5", "int6")
"""The kinds whose codes calibration finds."""
BALANCED: Mapping[str, float] = MappingProxyType({"int5": -0.125, "int6": -0.125, "int8": -0.25})
"""Kinds before whose matrices calibration makes columns of inputs alike -> exponent of a column's mean square in what
it is multiplied by; -0.5 would make all alike. What makes inputs small makes weights large, which fewer bits bear less;
and the fewer they are, the less of what is lost lies in the inputs."""
REFERENCE_KIND = "int8"
"""Of the same weights in the model that says what their inputs should be: it runs far faster than in f32, and what it
loses is a thirtieth of what int4 does."""
CALIBRATION_VERSION = 6
"""Goes up when the same weights become other bytes on the same text, so that no conversion goes on with old ones."""
