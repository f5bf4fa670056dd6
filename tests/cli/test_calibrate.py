"""`quantkit calibrate`, and what `convert --imatrix` makes of its file."""

from __future__ import annotations

import json
from pathlib import Path

from invocation import Invoke


def test_a_file_is_written_and_read(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.imatrix.gguf"
    result = invoke("calibrate", checkpoint, "-o", file)
    assert (result.exit_code, result.stderr) == (0, "")
    first, last = result.stdout.splitlines()
    assert first.startswith(f"{file}: inputs of 15 matrices on 65536 tokens of builtin")
    assert last.startswith("peak memory ")
    assert invoke("convert", checkpoint, "-o", tmp_path / "out", "--imatrix", file, "--strict").exit_code == 0
    assert json.loads((tmp_path / "out" / "quantkit.json").read_text())["imatrix"]["file"] == file.name
    again = invoke("calibrate", checkpoint, "-o", file)
    assert (again.exit_code, "--force" in again.stderr) == (2, True)


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
