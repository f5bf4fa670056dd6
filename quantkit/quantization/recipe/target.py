"""How large a packed model may be: as a number of bytes, or of bits per weight.

What counts are all tensors of the packed model, row scales included, as `convert` prints them. `allocation/` spends
what the smallest kinds leave of it.
"""

from __future__ import annotations

import math
import re

from quantkit.errors import OptionError
from quantkit.generation.options import is_number, is_whole

_UNITS = ("", "k", "m", "g", "t")
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?([{''.join(_UNITS)}]?)(i?)b?", re.IGNORECASE)
MOST_BPW = 32
"""Bits of the largest kind."""


def read_size(value: object, origin: str = "target_size") -> int:
    """Return a number of bytes.

    Parameters
    ----------
    value : int or str
        Bytes, or a text such as `98MB`, `4.5 GB` or `4GiB`; units are decimal, those with an `i` binary.
    origin : str
        Says in messages where it stands.

    Raises
    ------
    OptionError
        For anything else, or nothing.
    """
    size = int(value) if is_whole(value) else _parsed(value)
    if size is None or size < 1:
        raise OptionError(f"{origin}: {value!r:.100} is no size such as 98MB, 4.5GB or 4GiB")
    return size


def _parsed(value: object) -> int | None:
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        return None
    number, unit, binary = found.groups()
    size = float(number) * (1024 if binary else 1000) ** _UNITS.index(unit.lower())
    return int(size) if math.isfinite(size) else None


def read_bpw(value: object, origin: str = "target_bpw") -> float:
    """Return a number of bits per weight; raises `OptionError` if it is none, or more than any kind has."""
    if not is_number(value) or not 0 < value <= MOST_BPW:
        raise OptionError(f"{origin}: {value!r:.100} is no number of bits per weight, above 0 and at most {MOST_BPW}")
    return float(value)
