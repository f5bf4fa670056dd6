"""A recipe in a file, JSON or TOML.

    quantize = "int4"
    overrides = [
        ["down_proj", "int8"],      # regular expression and kind; the last match decides
        ["layers[.]0[.]", "f16"],
    ]

Its keys are those that quantkit.json records as `options` of a packed folder. Such a quantkit.json is read as a recipe,
too, so that what once was packed can be packed again. What a recipe means is said in `__init__.py`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantkit.errors import OptionError
from quantkit.formats.json_files import read_file
from quantkit.quantization.recipe import RECIPES, SENSITIVITIES, Override, Recipe
from quantkit.quantization.recipe.target import read_bpw, read_size


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a file.

    Parameters
    ----------
    path : path
        A JSON or TOML file with any of the keys that `Recipe` has parameters for, or the quantkit.json of a packed
        folder.

    Raises
    ------
    OptionError
        When the file cannot be read, or a key is unknown or has a value that means nothing; the message names both.
    """
    file = Path(os.path.expanduser(path))
    found = _parse(file)
    if "format_version" in found and isinstance(options := found.get("options"), dict):
        found = options
    for key in found:
        if key not in _KEYS:
            raise OptionError(f"{file}: {key}: is no key of a recipe, which has {', '.join(_KEYS)}")
    fields = {key: _KEYS[key](value, f"{file}: {key}") for key, value in found.items()}
    try:
        return Recipe(**fields)
    except OptionError as cause:
        raise OptionError(f"{file}: {cause}") from None


def _parse(file: Path) -> Mapping[str, Any]:
    content = read_file(file, OptionError)
    is_json = file.suffix == ".json" or content.lstrip()[:1] == b"{"
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(text) if is_json else tomllib.loads(text)
    except UnicodeDecodeError as cause:
        raise OptionError(f"{file}: is not UTF-8 text ({cause.reason} at byte {cause.start})") from cause
    except RecursionError as cause:
        raise OptionError(f"{file}: is nested too deeply") from cause
    except ValueError as cause:
        raise OptionError(f"{file}: is not {'JSON' if is_json else 'TOML'}: {cause}") from cause
    if not isinstance(found, dict):
        raise OptionError(f"{file}: is not a JSON object")
    return found


def _one_of(names: Collection[str]) -> Callable[[Any, str], str]:
    """What reads one of some names."""

    def read(value: Any, origin: str) -> str:
        if not isinstance(value, str) or value not in names:
            raise OptionError(f"{origin}: {value!r:.100} is not one of {', '.join(names)}")
        return value

    return read


def _overrides(value: Any, origin: str) -> tuple[Override, ...]:
    if not isinstance(value, list):
        raise OptionError(f"{origin}: {value!r:.100} is no list of pairs [regular expression, kind]")
    return tuple(_override(pair, f"{origin}[{place}]:") for place, pair in enumerate(value))


def _override(pair: Any, origin: str) -> Override:
    match pair:
        case [str(pattern), str(kind)]:
            override = Override(pattern, kind, origin)
        case _:
            raise OptionError(f"{origin} {pair!r:.100} is no pair [regular expression, kind]")
    if override.fault:
        raise override.error(override.fault)
    return override


_KEYS: Mapping[str, Callable[[Any, str], Any]] = MappingProxyType(
    {
        "quantize": _one_of(RECIPES),
        "overrides": _overrides,
        "target_bpw": read_bpw,
        "target_size": read_size,
        "sensitivities": _one_of(SENSITIVITIES),
    }
)
"""Key -> what reads its value; the second argument says in messages where it stands."""
