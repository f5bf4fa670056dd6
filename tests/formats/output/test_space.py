"""Room on the disk is asked for before any work, and what is gone on with counts."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from quantkit.errors import PackedModelError
from quantkit.formats.output.space import check_space

Usage = namedtuple("Usage", "total used free")
MB = 1_000_000


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk have room for 10 MB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * MB, 90 * MB, 10 * MB))


@pytest.mark.usefixtures("full")
def test_what_fits_and_what_does_not(tmp_path: Path) -> None:
    check_space({tmp_path / "out": 10 * MB})
    check_space({tmp_path / "new/out": 4 * MB, tmp_path / "other": 6 * MB})
    message = (
        r"out: 10\.0 MB are to be written, but the disk has room for 10\.0 MB; free some space or name another output"
    )
    with pytest.raises(PackedModelError, match=message):
        check_space({tmp_path / "out": 10 * MB + 1})
    with pytest.raises(PackedModelError, match=r"out: 12\.0 MB are to be written"):
        check_space({tmp_path / "new/out": 6 * MB, tmp_path / "other": 6 * MB})
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("full")
def test_what_was_left_behind_is_room(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123abcd.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(3 * MB))
    check_space({tmp_path / "out": 13 * MB})
    for path in (tmp_path / "other", tmp_path / "below/out"):
        with pytest.raises(PackedModelError, match="has room for 10"):
            check_space({path: 13 * MB})
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # another process is writing it
    with pytest.raises(PackedModelError, match="has room for 10"):
        check_space({tmp_path / "out": 13 * MB})
    os.close(descriptor)
