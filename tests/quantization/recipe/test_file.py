"""Recipes in files: what they say, and what is refused, naming file and key."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import tiny
from quantkit import OptionError, convert, read_recipe
from quantkit.formats.packed import PackedModel
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.recipe import file as recipe_file

OPTIONS = {"quantize": "int8", "overrides": [["down_proj", "int4"], ["^lm_head", "f16"]]}
TOML = """
# kinds of our model
quantize = "int8"
overrides = [
    ["down_proj", "int4"],
    ['^lm_head', "f16"],  # the last match decides
]
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [("mine.toml", TOML), ("mine.json", json.dumps(OPTIONS)), ("mine", TOML), ("mine.txt", json.dumps(OPTIONS))],
)
def test_json_and_toml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_recipe(tmp_path / name).options == OPTIONS


def test_the_example_in_the_documentation(tmp_path: Path) -> None:
    lines = (recipe_file.__doc__ or "").splitlines()
    (tmp_path / "mine.toml").write_text("\n".join(line for line in lines if line.startswith("    ")))
    assert read_recipe(tmp_path / "mine.toml").options["overrides"] == [["down_proj", "int8"], ["layers[.]0[.]", "f16"]]


def test_what_a_packed_folder_records_packs_it_again(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (tmp_path / "mine.toml").write_text(TOML)
    convert(source, tmp_path / "first", read_recipe(tmp_path / "mine.toml"), overrides=[("up_proj", "bf16")])
    recorded = PackedModel(tmp_path / "first").manifest["options"]
    assert recorded["overrides"][-1] == ["up_proj", "bf16"]
    (tmp_path / "recorded.json").write_text(json.dumps(recorded))
    for place, file in (("second", tmp_path / "recorded.json"), ("third", tmp_path / "first" / "quantkit.json")):
        convert(source, tmp_path / place, read_recipe(file))
        for name in os.listdir(tmp_path / "first"):
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / place / name).read_bytes()


def test_what_is_not_said_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('target_size = "98MB"')
    assert read_recipe(tmp_path / "mine.toml") == Recipe("mixed", target_size=98_000_000)
    (tmp_path / "mine.toml").write_text('overrides = [["down_proj", "int8"]]')
    assert read_recipe(tmp_path / "mine.toml").options == {"quantize": "mixed", "overrides": [["down_proj", "int8"]]}
    (tmp_path / "mine.toml").write_text("")
    assert read_recipe(tmp_path / "mine.toml") == Recipe("mixed", sensitivities="rule")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", 'quantise = "int4"', "quantise: is no key of a recipe, which has quantize, overrides, target_bpw"),
        ("a.toml", 'quantize = "int3"', "quantize: 'int3' is not one of int4, int5, int6, int8, mixed"),
        ("a.toml", "quantize = 4", "quantize: 4 is not one of int4, int5, int6, int8, mixed"),
        ("a.toml", 'overrides = "mlp=int8"', "overrides: 'mlp=int8' is no list of pairs"),
        ("a.toml", 'overrides = [["a", "int8"], ["b"]]', "overrides[1]: ['b'] is no pair"),
        ("a.toml", 'target_size = "98 apples"', "target_size: '98 apples' is no size such as 98MB"),
        ("a.toml", "target_bpw = 0", "target_bpw: 0 is no number of bits per weight"),
        ("a.toml", 'quantize = "int8"\ntarget_bpw = 5', "target_bpw: says something of 'mixed' alone"),
        ("a.toml", 'sensitivities = "x"', "sensitivities: 'x' is not one of rule, measured"),
        ("a.json", '{"overrides": [["a", "q4"]]}', "overrides[0]: a=q4: 'q4' is not one of f32"),
        ("a.json", '{"overrides": [["(", "int4"]]}', "overrides[0]: (=int4: '(' is no regular expression"),
        ("a.json", '{"quantize": "int4",}', "is not JSON: "),
        ("a.json", "[]", "is not a JSON object"),
        ("a.json", "[" * 100_000, "is nested too deeply"),
        ("a.toml", "quantize = int4", "is not TOML: "),
        ("a.toml", "\udcff", "is not UTF-8 text"),
    ],
)
def test_a_fault_is_named_with_file_and_key(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_bytes(os.fsencode(text))
    with pytest.raises(OptionError) as caught:
        read_recipe(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {words}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(OptionError, match=str(path)):
            read_recipe(path)


def test_an_override_that_finds_nothing_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('overrides = [["experts", "int8"]]')
    with pytest.raises(
        OptionError, match=r"a\.toml: overrides\[0\]: experts=int8: 'experts' is found in the name of no"
    ):
        convert(tiny.checkpoint(tmp_path / "source"), tmp_path / "out", read_recipe(tmp_path / "a.toml"))
