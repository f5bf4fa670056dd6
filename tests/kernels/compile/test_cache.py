"""Where the cache lies, and what happens where it cannot."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest

from quantkit_kernels.compile.cache import cache_root


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"QUANTKIT_CACHE_DIR": "own", "XDG_CACHE_HOME": "xdg", "HOME": "home"}, "own"),
        ({"XDG_CACHE_HOME": "xdg", "HOME": "home"}, "xdg/quantkit"),
        ({"HOME": "home"}, "home/.cache/quantkit"),
    ],
)
def test_the_variables_choose_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("QUANTKIT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert cache_root() == tmp_path / folder
    assert cache_root().is_dir()


def test_an_unwritable_folder_falls_back_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "file/cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        folders = {cache_root() for _ in range(3)}
    (folder,) = folders
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    assert [str(tmp_path / "file/cache") in record.getMessage() for record in caplog.records] == [True]


def test_a_fallback_that_others_can_write_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "file/other"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    folder = cache_root()
    assert folder.is_dir()
    assert folder != tmp_path / "quantkit-12345"
