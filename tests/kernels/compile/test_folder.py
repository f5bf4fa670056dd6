"""Where compiled kernels are kept: not at all where nobody said so, and never where others can write."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import quantkit_kernels
from quantkit_kernels.compile import folder

KeepIn = Callable[[Callable[[str], Path]], None]


@pytest.fixture
def keep_in(monkeypatch: pytest.MonkeyPatch) -> KeepIn:
    """Name another place for compiled kernels."""
    return lambda place: monkeypatch.setattr(quantkit_kernels, "cache_folder", place)


def test_each_instruction_set_has_a_folder(keep_in: KeepIn, tmp_path: Path) -> None:
    keep_in(lambda name: tmp_path / name)
    one, other = folder.kernel_folder("avx2"), folder.kernel_folder("generic")
    assert one is not None
    assert other is not None
    assert one.parent == other.parent == tmp_path
    assert one != other
    assert {path.stat().st_mode & 0o777 for path in (one, other)} == {0o700}


def test_the_place_is_asked_for_once_and_late(keep_in: KeepIn, tmp_path: Path) -> None:
    asked = []

    def place(name: str) -> Path:
        asked.append(name)
        return tmp_path / name

    keep_in(place)
    assert asked == []
    for _ in range(2):
        folder.kernel_folder("generic")
    assert len(asked) == 1


def test_a_place_that_cannot_be_used_is_named_once(
    keep_in: KeepIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_in(lambda name: tmp_path / "missing" / name)
    with caplog.at_level(logging.WARNING):
        assert [folder.kernel_folder("generic") for _ in range(2)] == [None, None]
    (record,) = caplog.records
    assert str(tmp_path / "missing") in record.getMessage()


def test_a_folder_that_others_can_write_to_is_not_used(
    keep_in: KeepIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_in(lambda name: tmp_path / "open")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert folder.kernel_folder("generic") is None
    assert str(tmp_path / "open") in caplog.text


def test_kernels_alone_keep_nothing_and_quantkit_tells_them_where(tmp_path: Path) -> None:
    code = "{}; from quantkit_kernels.compile import folder; print(folder.kernel_folder('generic'))"
    environment = os.environ | {"QUANTKIT_CACHE_DIR": str(tmp_path)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", code.format(first)], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()
        for first in ("pass", "import quantkit")
    ]
    assert printed[0] == "None"
    assert Path(printed[1]).parent == tmp_path / "kernels"
