"""What `generation_config.json` says: the tokens that end a text, and the sampling that the model's makers recommend.

Values are checked when the file is read, and an error names the file. "Off", which every tool spells differently,
leaves here in the spelling of `sampling.py`, which makes samplers of these values and of what a user asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError
from quantkit.generation.options import is_number, is_whole

LARGEST_TOKEN_ID = 2**31 - 1
NO_TOKEN = -1
"""How older conversions write that there is no such token."""


class _Setting(NamedTuple):
    """A number that the file may hold."""

    expected: str
    off: float
    off_spellings: tuple[int, ...] = (0,)
    most: float = math.inf
    whole: bool = False

    def read(self, value: Any) -> float | None:
        """Return the value with "off" in our spelling; None when it is not accepted."""
        if not is_number(value) or (self.whole and value != int(value)):
            return None
        if value in self.off_spellings:
            return self.off
        if not 0 < value <= self.most:
            return None
        return int(value) if self.whole else float(value)


_SETTINGS = {
    "temperature": _Setting("a number from 0 (greedy) up", off=0.0),
    "top_k": _Setting("a whole number; 0 and -1 are off", off=0, off_spellings=(0, -1), whole=True),
    "top_p": _Setting("a number from 0 to 1; both are off", off=1.0, most=1),
    "min_p": _Setting("a number from 0 (off) to 1", off=0.0, most=1),
    "repetition_penalty": _Setting("a number from 0 up; 0 and 1 are off", off=1.0),
}
_ALWAYS = ("repetition_penalty",)
"""What counts without `do_sample` as well, as in transformers."""
_NOT_APPLIED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "bad_words_ids": ([],),
        "begin_suppress_tokens": ([],),
        "exponential_decay_length_penalty": (),
        "guidance_scale": (1,),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "penalty_alpha": (0,),
        "sequence_bias": ({}, []),
        "stop_strings": ([], ""),
        "suppress_tokens": ([],),
    }
)
"""What transformers would choose tokens by and quantkit does not -> the values by which it changes nothing, as null."""
_WHEN_SAMPLING = {"temperature": 1.0, "top_k": 50}
"""transformers' own defaults for a file that says `do_sample` without naming these."""


def recommended_sampling(config: Mapping[str, Any], file: Path) -> dict[str, float]:
    """Return what a `generation_config.json` recommends, by the names that stand in it.

    Parameters
    ----------
    config : Mapping
        The file's contents.
    file : Path
        Named in errors.

    Returns
    -------
    dict
        `temperature`, `top_k`, `top_p`, `min_p` where the file says `do_sample`, and `repetition_penalty` in any case;
        empty when there is nothing of them. All are values that `make_sampler` and `make_logits_processors` take.

    Raises
    ------
    CheckpointError
        When one that counts is no number, or out of range.
    """
    sampled = bool(config.get("do_sample"))
    counting = [name for name in _SETTINGS if (sampled or name in _ALWAYS) and config.get(name) is not None]
    found = dict(_WHEN_SAMPLING) if sampled else {}
    for name in counting:
        value = _SETTINGS[name].read(config[name])
        if value is None:
            raise CheckpointError(f"{file}: {name} is {config[name]!r:.60}; expected {_SETTINGS[name].expected}")
        found[name] = value
    return found


def not_applied(config: Mapping[str, Any]) -> list[str]:
    """Return the names of settings by which transformers would choose other tokens, and that quantkit does not have."""
    return [
        name for name, neutral in _NOT_APPLIED.items() if config.get(name) is not None and config[name] not in neutral
    ]


def declared_ids(config: Mapping[str, Any], field: str, file: Path) -> list[int]:
    """Return the token ids in a field such as `eos_token_id`: one, a list of them, or none, as which -1 counts too.

    Raises
    ------
    CheckpointError
        When the field holds anything else; the message names file and field.
    """
    value = config.get(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    ids = [token for token in values if token != NO_TOKEN]
    if not all(is_whole(token) and 0 <= token <= LARGEST_TOKEN_ID for token in ids):
        raise CheckpointError(f"{file}: {field} is {value!r:.60}, neither a token id nor a list of them")
    return ids
