"""Checks of what a caller asks for: each raises `OptionError` with the option's name, its value and what was expected.

Values from a checkpoint are not checked here: their errors name the file that holds them.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np

from quantkit.errors import OptionError


def require(accepted: bool, option: str, value: object, expected: str) -> None:
    """Raise `OptionError` unless the value was accepted."""
    if not accepted:
        raise OptionError(f"{option} is {value!r:.100}; expected {expected}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number; a bool is none."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; a bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
