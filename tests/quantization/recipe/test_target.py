"""Targets: the sizes that people write, and what is refused."""

from __future__ import annotations

import pytest

from quantkit.errors import OptionError
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.recipe.target import read_bpw, read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (98_000_000, 98_000_000),
        ("98MB", 98_000_000),
        ("98 mb", 98_000_000),
        ("98M", 98_000_000),
        ("4.5GB", 4_500_000_000),
        ("4GiB", 4 << 30),
        ("1.5k", 1500),
        ("2TB", 2_000_000_000_000),
        ("123456", 123_456),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", 0, -5, "0.1", "1e9", "98 apples", "nan", None, 9.5, True, []])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(OptionError, match=r"^here: .* is no size such as 98MB"):
        read_size(text, "here")


@pytest.mark.parametrize("value", [0, -1, 33, float("nan"), float("inf"), "4", None, True])
def test_what_is_no_number_of_bits(value: object) -> None:
    with pytest.raises(OptionError, match=r"^here: .* is no number of bits per weight"):
        read_bpw(value, "here")


def test_a_recipe_says_its_target() -> None:
    recipe = Recipe("mixed", target_size="98MB")
    assert recipe.options == {"quantize": "mixed", "overrides": [], "target_size": 98_000_000}
    assert recipe.arguments == ["-q", "mixed", "--target-size", "98000000"]
    assert Recipe(**recipe.options) == recipe
    assert recipe.with_overrides([("a", "int8")]).target_size == 98_000_000
    assert Recipe("mixed", target_bpw=5, sensitivities="measured").arguments == (
        ["-q", "mixed", "--target-bpw", "5.0", "--sensitivities", "measured"]
    )
    assert Recipe(sensitivities="rule").arguments == ["-q", "mixed"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantize": "int4", "target_bpw": 5}, "target_bpw: says something of 'mixed' alone, and quantize is 'int4'"),
        (
            {"quantize": "int4", "sensitivities": "measured"},
            "sensitivities: says something of 'mixed' alone, and quantize is 'int4'",
        ),
        ({"quantize": "mixed", "target_bpw": 5, "target_size": 9}, "target_size: there is a target_bpw already"),
        ({"quantize": "mixed", "sensitivities": "guessed"}, "sensitivities: 'guessed' is not one of rule, measured"),
    ],
)
def test_what_contradicts_itself(fields: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        Recipe(**fields)  # type: ignore[arg-type]
    assert str(caught.value).startswith(words)
