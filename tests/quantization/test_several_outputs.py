"""Several conversions at once: each is what it would be by itself, and the checkpoint is read once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import tiny
from quantkit.errors import OptionError, PackedModelError
from quantkit.formats.packed import verify
from quantkit.formats.source import Selection
from quantkit.quantization.conversion import convert, convert_all
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report import Progress


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("source") / "tiny")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_each_is_as_by_itself(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, original = [], Selection.entries

    def entries(self: Selection, name: str, *args: Any, **options: Any) -> Any:
        read.append(name)
        return original(self, name, *args, **options)

    recipes: dict[str, str | Recipe] = {"a": "int4", "b": Recipe("int8"), "c": Recipe("int4", overrides=())}
    with monkeypatch.context() as patch:
        patch.setattr(Selection, "entries", entries)
        steps: list[Progress] = []
        outputs = {tmp_path / name: recipe for name, recipe in recipes.items()}
        reports = convert_all(checkpoint, outputs, overrides=[("down_proj", "f16")], progress=steps.append)
    assert list(reports) == list(outputs)
    assert sorted(os.listdir(tmp_path)) == list(recipes)
    written = [step.tensor for step in steps]
    assert read[-len(written) :] == written  # behind what the model reads to measure inputs
    assert len(set(written)) == len(written)
    assert steps[-1].done == steps[-1].total
    for folder, recipe in outputs.items():
        alone = convert(checkpoint, tmp_path / "alone", recipe, overrides=[("down_proj", "f16")], force=True)
        assert contents(folder) == contents(tmp_path / "alone")
        assert (alone.errors, alone.kinds) == (reports[folder].errors, reports[folder].kinds)
        verify(folder)


def interrupt(checkpoint: Path, outputs: dict[Path, str | Recipe], after: int) -> None:
    steps: list[Progress] = []

    def progress(now: Progress) -> None:
        steps.append(now)
        if len(steps) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_all(checkpoint, outputs, progress=progress)


def test_each_goes_on_where_it_stopped(checkpoint: Path, tmp_path: Path) -> None:
    outputs: dict[Path, str | Recipe] = {tmp_path / "a": "int4", tmp_path / "b": "int8"}
    interrupt(checkpoint, outputs, 12)
    interrupt(checkpoint, {tmp_path / "a": "int4"}, 17)  # further than the other
    steps: list[Progress] = []
    convert_all(checkpoint, outputs, progress=steps.append)
    assert len({step.tensor for step in steps}) == len(steps)
    assert steps[-1].done == steps[-1].total
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    for folder, recipe in outputs.items():
        convert(checkpoint, tmp_path / "alone", recipe, force=True)
        assert contents(folder) == contents(tmp_path / "alone")


def test_what_is_in_the_way_of_one_costs_the_others_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """It came while they were written; all that was done is gone on with."""
    outputs: dict[Path, str | Recipe] = {tmp_path / "a": "int4", tmp_path / "b": "int8"}
    steps: list[Progress] = []

    def occupy(now: Progress) -> None:
        if not steps:
            (tmp_path / "b").mkdir()
            (tmp_path / "b/thesis.tex").write_text("precious")
        steps.append(now)

    with pytest.raises(PackedModelError, match="b: was written by something else meanwhile"):
        convert_all(checkpoint, outputs, progress=occupy)
    assert os.listdir(tmp_path / "b") == ["thesis.tex"]
    (tmp_path / "b/thesis.tex").unlink()
    assert len(list(tmp_path.glob(".?.*.partial"))) == 2
    convert_all(checkpoint, outputs)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    for folder in outputs:
        assert "journal.jsonl" not in os.listdir(folder)
        verify(folder)


def test_outputs_that_cannot_be(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("a", "./a", "a/b", "."):
        with pytest.raises(PackedModelError, match="is another output as well, holds one or is in one"):
            convert_all(checkpoint, {Path("a"): "int4", other: "int8"})
    with pytest.raises(OptionError, match="outputs"):
        convert_all(checkpoint, {})
    assert os.listdir(tmp_path) == []
