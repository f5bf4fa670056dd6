"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

CALIBRATED = ("int4", "int5", "int6")
"""The kinds whose codes calibration finds."""
REFERENCE_KIND = "int8"
"""Of the same weights in the model that says what their inputs should be: it runs far faster than in f32, and what it
loses is a thirtieth of what int4 does."""
CALIBRATION_VERSION = 4
"""Goes up when the same weights become other bytes on the same text, so that no conversion goes on with old ones."""
