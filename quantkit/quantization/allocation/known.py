"""What was measured of a model before, in the user's cache folder, so that it is not measured again.

So a dry run, a conversion to another size and one that goes on where it stopped take no time for it. A file holds what
was measured of one model with one text; all of it is added at once. A file that cannot be read counts as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantkit import user_cache
from quantkit.errors import CheckpointError
from quantkit.formats.json_files import read_object
from quantkit.formats.output import as_json, write_file
from quantkit.generation.options import is_number
from quantkit.quantization.calibration import CALIBRATION_VERSION
from quantkit.quantization.encode import ENCODER_VERSION


class Known:
    """Numbers that were measured of one model with one text, by the labels of its units.

    Parameters
    ----------
    what : sequence
        What else decides the numbers, as JSON holds it.
    identity : str
        Of the checkpoint: another one when any byte is.
    windows : sequence of sequence of int
        What the model reads.
    """

    def __init__(self, what: Sequence[Any], identity: str, windows: Sequence[Sequence[int]]) -> None:
        decisive = json.dumps([*what, identity, windows, ENCODER_VERSION, CALIBRATION_VERSION])
        name = f"{hashlib.sha256(decisive.encode()).hexdigest()[:32]}.json"
        self._file: Path | None = None
        self._found: dict[str, list[float]] = {}
        with suppress(OSError):
            self._file = user_cache.entry("sensitivities", name)
        with suppress(CheckpointError):
            content = read_object(self._file) if self._file and self._file.exists() else {}
            self._found = {label: found for label, found in content.items() if _is_sound(found)}

    def get(self, label: str) -> list[float] | None:
        """Return the numbers of a unit, None if they were not measured."""
        return self._found.get(label)

    def add(self, label: str, numbers: list[float]) -> None:
        """Keep the numbers of a unit, here and for others."""
        self._found[label] = numbers
        if self._file:
            with suppress(OSError):
                write_file(self._file, as_json(self._found))


def _is_sound(found: object) -> bool:
    return isinstance(found, list) and found != [] and all(is_number(each) and each >= 0 for each in found)
