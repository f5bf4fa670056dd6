"""`quantkit calibrate`, and what `convert --imatrix` makes of its file."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import tiny_gguf
from invocation import Invoke


def test_a_file_is_written_and_read(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.imatrix.gguf"
    result = invoke("calibrate", checkpoint, "-o", file)
    assert (result.exit_code, result.stderr) == (0, "")
    first, last = result.stdout.splitlines()
    assert first.startswith(f"{file}: inputs of 15 matrices on 65536 tokens of builtin")
    assert re.fullmatch(r"[\d.]+ s, peak memory [\d.]+ MB, at most [\d.]+ MB were expected", last)
    assert invoke("convert", checkpoint, "-o", tmp_path / "out", "--imatrix", file, "--strict").exit_code == 0
    assert json.loads((tmp_path / "out" / "quantkit.json").read_text())["imatrix"]["file"] == file.name
    again = invoke("calibrate", checkpoint, "-o", file)
    assert (again.exit_code, "--force" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("source", "text.txt"),
        ("source", "source/config.json"),
        ("source", "source/new.gguf"),
        ("linked", "source/model.safetensors"),
        ("model.gguf", "model.gguf"),
    ],
)
def test_force_replaces_nothing_that_is_read(
    invoke: Invoke, checkpoint: Path, tmp_path: Path, model: str, name: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "source")
    (tmp_path / "linked").mkdir()
    for file in os.listdir(checkpoint):
        (tmp_path / "linked" / file).symlink_to(f"../source/{file}")
    tiny_gguf.write(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("Once upon a time. " * 1000)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    result = invoke("calibrate", tmp_path / model, "-f", tmp_path / "text.txt", "-o", tmp_path / name, "--force")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert str(tmp_path / name) in result.stderr
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_text_for_calibration_says_more(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file.gguf").touch()
    both = ("--imatrix", tmp_path / "file.gguf", "--calibration", "builtin")
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", *both)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "which says more" in result.stderr


def test_damage_is_one_line(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF" + bytes(40))
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--imatrix", tmp_path / "file.gguf")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert str(tmp_path / "file.gguf") in result.stderr
