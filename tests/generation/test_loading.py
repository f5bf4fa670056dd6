"""Loading: options that make no sense are refused by name, before the weights are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from quantkit.errors import OptionError
from quantkit.generation.loading import load_model


@pytest.mark.parametrize(
    "wrong",
    [
        *({"threads": value} for value in (0, -1, 1.5, True, "2")),
        *({"context": value} for value in (0, 257, 8.5, True, "8")),
    ],
)
def test_bad_options_are_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(wrong))} is "):
        load_model(tiny.checkpoint(tmp_path / "model"), **wrong)
