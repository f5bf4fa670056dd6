"""Where the cache lies, whom it is refused for, and what leaves it."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import user_cache


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files: everybody's, as `/tmp` is."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user chose; it does not exist yet."""
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o7777


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
    assert user_cache.root() == tmp_path / folder
    assert user_cache.root().is_dir()


def test_a_tilde_is_the_home_folder_and_a_relative_xdg_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", "~/own")
    assert user_cache.root() == tmp_path / "own"
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache.root() == tmp_path / ".cache/quantkit"


def test_folders_are_made_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "a/b"))
    previous = os.umask(0)
    try:
        entry = user_cache.entry("models", "one")
    finally:
        os.umask(previous)
    assert entry == tmp_path / "a/b/models/one"
    assert not entry.exists()
    assert {mode(folder) for folder in (entry.parent, entry.parents[1], entry.parents[2])} == {0o700}


def test_a_link_is_followed_once_and_for_all(cache: Path, tmp_path: Path) -> None:
    cache.symlink_to("elsewhere")
    assert user_cache.root() == tmp_path / "elsewhere"


def test_an_unwritable_folder_falls_back_with_one_warning(
    cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.touch()
    with caplog.at_level(logging.WARNING):
        folders = {user_cache.root() for _ in range(3)}
    assert folders == {temporary / f"quantkit-{os.getuid()}"}
    assert mode(folders.pop()) == 0o700
    (record,) = caplog.records
    assert record.getMessage().startswith(f"cannot use the cache folder {cache} (")


def test_a_read_only_folder_is_not_used(cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != cache)  # permission bits do not bind root
    assert user_cache.root().parent == temporary


def test_no_room_for_the_folder(
    cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mkdir = Path.mkdir

    def full(folder: Path, *args: Any, **kwargs: Any) -> None:
        if folder == cache:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        mkdir(folder, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", full)
    assert user_cache.root().parent == temporary
    assert f"cannot use the cache folder {cache} (No space left on device)" in caplog.text


@pytest.mark.parametrize("bits", [0o777, 0o1777, 0o775, 0o707])
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: Path, temporary: Path, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    cache.chmod(bits)
    assert user_cache.root().parent == temporary
    assert f"other users can write to {cache}" in caplog.text


def test_a_folder_inside_one_that_others_can_write_to_is_not_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    (shared / "cache").mkdir(parents=True)
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(shared / "cache"))
    shared.chmod(0o777)
    assert user_cache.root().parent == temporary
    assert f"other users can write to {shared}" in caplog.text


def test_a_folder_that_is_its_owners_in_one_with_the_sticky_bit_is_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(temporary / "cache"))
    assert user_cache.root() == temporary / "cache"


def test_a_folder_of_another_user_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    assert user_cache.root() != cache
    assert "belongs to another user" in caplog.text


def test_a_kind_that_others_can_write_to_is_refused(cache: Path) -> None:
    (cache / "models").mkdir(parents=True)
    (cache / "models").chmod(0o777)
    with pytest.raises(PermissionError, match=r"other users can write to .*models"):
        user_cache.entry("models", "one")


def squat_a_file(name: Path) -> None:
    name.touch()


def squat_a_link(name: Path) -> None:
    (name.parent / "somebody").mkdir(mode=0o777)
    (name.parent / "somebody").chmod(0o777)
    name.symlink_to("somebody")


def squat_an_open_folder(name: Path) -> None:
    name.mkdir()
    name.chmod(0o777)


@pytest.mark.parametrize("squat", [squat_a_file, squat_a_link, squat_an_open_folder])
def test_a_taken_temporary_name_is_not_used_and_stops_nothing(
    cache: Path, temporary: Path, squat: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache.touch()
    taken = temporary / f"quantkit-{os.getuid()}"
    squat(taken)
    folder = user_cache.root()
    assert folder.parent == temporary
    assert folder != taken
    assert mode(folder) == 0o700
    assert len(caplog.records) == 1


def test_a_folder_for_one_process_is_removed_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / f"quantkit-{os.getuid()}").touch()
    code = "from quantkit import user_cache; print(user_cache.root()); (user_cache.root() / 'file').touch()"
    environment = os.environ | {"QUANTKIT_CACHE_DIR": str(tmp_path / "file/cache"), "TMPDIR": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert Path(printed.strip()).parent == tmp_path
    assert not Path(printed.strip()).exists()


def age(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 60 * 60
    os.utime(path, (then, then), follow_symlinks=False)


def test_entries_that_nobody_used_for_a_month_are_removed(cache: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    models = user_cache.entry("models", "asked for").parent
    for name, days in {"asked for": 31, "recent": 29, "old": 31}.items():
        (models / name).mkdir()
        (models / name / "file").touch()
        age(models / name, days)
    (models / "old file").touch()
    (models / "old link").symlink_to(kept)
    for name in ("old file", "old link"):
        age(models / name, 31)
    other = user_cache.entry("kernels", "of another kind")
    other.mkdir()
    age(other, 31)
    for _ in range(2):
        assert user_cache.entry("models", "asked for") == models / "asked for"
        assert sorted(path.name for path in models.iterdir()) == ["asked for", "recent"]
    assert kept.is_dir()
    assert other.is_dir()
