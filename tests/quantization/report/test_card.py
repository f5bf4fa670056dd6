"""The model card: what it says, that it is always the same, and that no name of a stranger changes what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
import tiny_gguf
from quantkit import convert
from quantkit.formats import open as opened
from quantkit.formats.packed import PackedModel, verify
from quantkit.quantization.dequantization import dequantize
from quantkit.quantization.plan import make_plans
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report.card import card as card_of
from quantkit.quantization.report.card_fields import card_fields

FRONT_MATTER = """---
license: apache-2.0
language:
- en
- "no"
base_model: HuggingFaceTB/SmolLM2-135M   # what it was tuned from
tags: [chat, 'small']
widget:
- text: hello
---

# A model
"""


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text)
    return folder


def fields_of(card: str) -> dict[str, object]:
    _, front, _ = card.split("---\n", 2)
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}


def test_it_says_where_a_model_comes_from_and_what_packing_cost(tmp_path: Path) -> None:
    source = written(tiny.checkpoint(tmp_path / "tiny"), FRONT_MATTER)
    report = convert(source, tmp_path / "out", overrides=[(r"layers\.0\.", "int8")])
    card = (tmp_path / "out/README.md").read_text()
    assert fields_of(card) == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "quantized",
        "library_name": "quantkit",
        "tags": ["quantkit", "mixed"],
    }
    assert f"# `tiny`, packed to {report.bits_per_weight:.2f} bits per weight" in card
    assert r"quantkit convert tiny -o DIR -q mixed --override 'layers\.0\.=int8'" in card
    assert [(kind.kind, kind.tensors) for kind in report.kinds] == [("int8", 7), ("int6", 5), ("int5", 4), ("f32", 5)]
    for kind in report.kinds:
        row = f"| {kind.kind} | {kind.tensors} | {kind.weights:,} | {kind.nbytes:,} | {kind.mean_error:.2e} | "
        assert row in card
    assert f"{report.bits_per_weight:.2f} bits per weight; {report.source_bytes:,} bytes" in card
    assert "What differs from the source" not in card


def test_it_belongs_to_the_folder_and_to_no_other(tmp_path: Path) -> None:
    convert(tiny.checkpoint(tmp_path / "tiny"), tmp_path / "out")
    packed = PackedModel(tmp_path / "out")
    assert "README.md" in packed.manifest["files"]
    assert "README.md" not in packed.files
    dequantize(tmp_path / "out", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked/README.md").exists()
    (tmp_path / "out/README.md").write_text("another")
    with pytest.raises(Exception, match=r"README\.md: differs"):
        verify(tmp_path / "out")


def test_what_was_left_out_is_told_without_paths(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "tiny")
    (source / "tokenizer.json").unlink()
    convert(source, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "- `has no tokenizer.json; the packed model will not take text`\n" in card
    assert str(tmp_path) not in card
    (plan,) = make_plans(source, [Recipe()])
    for message in (f"{source}: a", f"{source} declares b", f"{source}/config.json: c"):
        told = card_of(replace(plan, notices=(message,)), plan.tensors({})).decode()
        assert str(tmp_path) not in told
        assert told.endswith(("- `a`\n", "- `tiny declares b`\n", "- `config.json: c`\n"))


@pytest.mark.parametrize("name", ["a`b", "```", "a\n# b", "\x1b[31m", "‮abc", "a b; rm -rf $HOME", "{left_out}"])
def test_a_name_is_text(tmp_path: Path, name: str) -> None:
    convert(tiny.checkpoint(tmp_path / name), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    convert(tiny.checkpoint(tmp_path / "plain"), tmp_path / "other")
    plain = (tmp_path / "other/README.md").read_text()
    assert len(card.splitlines()) == len(plain.splitlines())
    assert card.count("`") == plain.count("`")
    assert all(char.isprintable() for line in card.splitlines() for char in line)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\nlicense: mit\n---\n", {"license": "mit"}),
        ("\ufeff---\r\nlicense: mit # really\r\n---\r\n", {"license": "mit"}),
        ("---\nbase_model:\n  - a/b\n  - c/d\n---\n", {"base_model": ["a/b", "c/d"]}),
        ("---\nlicense:\ntags: []\nextra: |\n  text\nmap: {a: b}\n---\n", {}),
        ("---\nlicense: \x1b[31mmit\n---\n", {}),
        (f"---\nlicense: {'m' * 1000}\n---\n", {}),
        ("---\n- item\nlicense: 'mit' # really\n---\n", {"license": "mit"}),
    ],
)
def test_front_matter(tmp_path: Path, text: str, found: dict[str, object]) -> None:
    assert card_fields(opened(written(tiny.checkpoint(tmp_path / "tiny"), text))) == found


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    source = opened(tiny.checkpoint(tmp_path / "tiny"))
    assert card_fields(source) == {}
    (source.path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert "license" in card_fields(source)
    (source.path / "README.md").write_bytes(b"---\n" + b"tags:\n" + 1_000_000 * b"- a\n" + b"---\n")
    assert card_fields(source) == {}
    (source.path / "README.md").unlink()
    (source.path / "README.md").mkdir()
    assert card_fields(source) == {}


def test_a_gguf_file_says_it_in_its_metadata(tmp_path: Path) -> None:
    said = {
        "general.license": ("mit", tiny_gguf.TEXT),
        "general.languages": (["en", "no"], tiny_gguf.ARRAY),
        "general.license.link": ("\x1b[31m", tiny_gguf.TEXT),
        "general.base_model.0.repo_url": ("https://huggingface.co/org/base", tiny_gguf.TEXT),
    }
    convert(tiny_gguf.write(tmp_path / "m.gguf", said), tmp_path / "out")
    found = fields_of((tmp_path / "out/README.md").read_text())
    assert (found["license"], found["language"], found["base_model"]) == ("mit", ["en", "no"], "org/base")
    assert "license_link" not in found


def test_a_model_of_the_hub_is_the_base_of_its_packed_one(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny/snapshots" / ("0" * 40)
    convert(written(tiny.checkpoint(snapshot), FRONT_MATTER), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert fields_of(card)["base_model"] == "org/tiny"
    assert "# `org/tiny`, packed to 6.52 bits per weight" in card
