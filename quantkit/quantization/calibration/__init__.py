"""Calibration: packing weights by what they do to known inputs, a model's own on some text."""

CALIBRATED = ("int4", "int5", "int6")
"""The kinds whose codes calibration finds."""
BALANCED = "int8"
"""The kind before which calibration makes columns of inputs alike: of what the kinds above lose, rounded inputs are a
small part."""
REFERENCE_KIND = "int8"
"""Of the same weights in the model that says what their inputs should be: it runs far faster than in f32, and what it
loses is a thirtieth of what int4 does."""
CALIBRATION_VERSION = 5
"""Goes up when the same weights become other bytes on the same text, so that no conversion goes on with old ones."""
