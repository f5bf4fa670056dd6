"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

KIND = "int4"
"""The kind whose codes calibration finds."""
CALIBRATION_VERSION = 2
"""Goes up when the same weights become other bytes on the same text, so that no conversion goes on with old ones."""
