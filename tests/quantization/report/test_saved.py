"""Reports in files: what is refused before work, and that a file appears complete or not at all."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from quantkit import OptionError, convert
from quantkit.quantization.report import Report
from quantkit.quantization.report.saved import check_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("saved")
    return convert(tiny.checkpoint(folder / "tiny"), folder / "out", dry_run=True)


def test_json(report: Report, tmp_path: Path) -> None:
    for _ in range(2):  # it replaces what stands there
        report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_bytes())["folder_bytes"] == report.folder_bytes
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("report.pdf", r"ends in \.json or \.html"),
        ("report", r"ends in \.json or \.html"),
        ("missing/report.json", "missing is no folder"),
        ("taken.json", "exists already; name another report, or use --force"),
        ("folder.html", "is a folder"),
        ("model/config.json", "belongs to a model"),
        ("model/deeper/../report.json", "belongs to a model"),
    ],
)
def test_what_cannot_be_written_is_told_before(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "taken.json").touch()
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "model/deeper").mkdir(parents=True)
    with pytest.raises(OptionError, match=words):
        check_report(tmp_path / name, apart_from=(tmp_path / "model",))


def test_force_replaces_a_file_but_nothing_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "taken.json").touch()
    assert check_report(tmp_path / "taken.json", force=True) == tmp_path / "taken.json"
    with pytest.raises(OptionError, match="belongs to a model"):
        check_report(tmp_path / "taken.json", apart_from=(tmp_path,), force=True)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    code = (
        "from quantkit import convert;"
        f"convert({str(source)!r}, {str(tmp_path / 'out')!r}, dry_run=True).save({str(tmp_path / 'report.json')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert "OptionError" in done.stderr.splitlines()[-1]
    assert "report.json: cannot be written" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["source"]
