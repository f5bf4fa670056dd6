"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

KIND = "int4"
"""The kind whose codes calibration finds."""
