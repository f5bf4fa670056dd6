"""generation_config.json: what counts when, "off" in every spelling, and errors that name the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import CheckpointError
from quantkit.generation.generation_config import declared_ids, not_applied, recommended_sampling
from quantkit.generation.sampling import make_logits_processors, make_sampler

FILE = Path("model/generation_config.json")


def sampled(**settings: Any) -> dict[str, float]:
    return recommended_sampling({"do_sample": True, **settings}, FILE)


def test_sampling_counts_only_with_do_sample() -> None:
    settings = {"temperature": 0.6, "top_p": 0.9, "min_p": 0.1, "top_k": 20, "eos_token_id": 1}
    assert recommended_sampling(settings, FILE) == {}
    assert recommended_sampling(settings | {"do_sample": False}, FILE) == {}
    assert sampled(**settings) == {"temperature": 0.6, "top_p": 0.9, "min_p": 0.1, "top_k": 20}


def test_what_transformers_takes_where_nothing_is_named() -> None:
    assert sampled() == sampled(temperature=None) == {"temperature": 1.0, "top_k": 50}


@pytest.mark.parametrize("do_sample", [{}, {"do_sample": False}, {"do_sample": True}])
def test_the_repetition_penalty_counts_always(do_sample: dict[str, Any]) -> None:
    assert recommended_sampling({"repetition_penalty": 1.1, **do_sample}, FILE)["repetition_penalty"] == 1.1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("top_k", -1, 0),
        ("top_k", 0, 0),
        ("top_k", 20.0, 20),
        ("top_k", -1.0, 0),
        ("top_p", 0, 1.0),
        ("top_p", 0.0, 1.0),
        ("top_p", 1, 1.0),
        ("min_p", 0, 0.0),
        ("temperature", 0, 0.0),
        ("temperature", 1, 1.0),
        ("repetition_penalty", 0, 1.0),
        ("repetition_penalty", 1, 1.0),
    ],
)
def test_off_in_every_spelling(name: str, value: float, expected: float) -> None:
    found: dict[str, Any] = sampled(**{name: value})
    assert found[name] == expected
    assert type(found[name]) is type(expected)
    penalty = found.pop("repetition_penalty", 1.0)
    make_sampler(found.pop("temperature"), **found)
    make_logits_processors(penalty)


BAD_VALUES: dict[str, list[object]] = {
    "top_k": [-2, 1.5, "20", True, [20], math.nan],
    "top_p": [-0.1, 1.1, "0.9", False, math.inf, 10**400],
    "min_p": [-1, 2],
    "temperature": [-0.5, {}, math.nan],
    "repetition_penalty": [-1.0, "1.1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD_VALUES.items() for value in bad])
def test_a_bad_value_names_file_and_field(name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name} is "):
        sampled(**{name: value})


def test_what_does_not_count_is_not_judged() -> None:
    assert recommended_sampling({"do_sample": False, "top_k": "all"}, FILE) == {}


def test_what_is_not_applied() -> None:
    neutral = {"num_beams": 1, "suppress_tokens": [], "stop_strings": None, "guidance_scale": 1.0, "max_new_tokens": 9}
    assert not_applied(neutral) == []
    assert not_applied({"num_beams": 4, "suppress_tokens": [5], "stop_strings": "x"}) == [
        "num_beams",
        "stop_strings",
        "suppress_tokens",
    ]


def test_ids() -> None:
    assert declared_ids({}, "eos_token_id", FILE) == declared_ids({"eos_token_id": None}, "eos_token_id", FILE) == []
    assert declared_ids({"eos_token_id": 7}, "eos_token_id", FILE) == [7]
    assert declared_ids({"eos_token_id": [7, 8]}, "eos_token_id", FILE) == [7, 8]
    assert declared_ids({"eos_token_id": -1}, "eos_token_id", FILE) == []
    assert declared_ids({"eos_token_id": [7, -1]}, "eos_token_id", FILE) == [7]


@pytest.mark.parametrize("wrong", ["2", 2.5, True, -2, 10**400, [1, "2"], [[1]], {"id": 2}])
def test_malformed_ids_name_file_and_field(wrong: object) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is "):
        declared_ids({"eos_token_id": wrong}, "eos_token_id", FILE)
