"""Compiled kernels on disk: damaged files, files of others, no room."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from numba.core import event

import quantkit_kernels
from quantkit_kernels.compile import files, folder
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import ISA


def triple(x):
    return 3 * x


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept meanwhile."""
    monkeypatch.setattr(quantkit_kernels, "cache_folder", lambda name: tmp_path / name)
    kept_in = folder.kernel_folder(ISA)
    assert kept_in is not None
    return kept_in


def compiled_files(kernels: Path) -> list[Path]:
    return list(kernels.glob("*triple*"))


class Calls(Protocol):
    """Calls an entry as a new process would, and checks whether its machine code is `compiled` or `loaded`."""

    def __call__(self, how: str) -> None: ...


def by_python(how: str) -> None:
    entry = jit(entry=True)(triple)
    assert entry(14) == 42
    assert sum(entry.dispatcher.stats.cache_hits.values()) == (how == "loaded")


def by_address(how: str) -> None:
    with event.install_recorder("numba:compile") as compiling:
        address = jit(entry=True)(triple).address
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(14) == 42
    assert bool(compiling.buffer) == (how == "compiled")


@pytest.fixture(params=[by_python, by_address])
def calls(request: pytest.FixtureRequest) -> Calls:
    call: Calls = request.param
    return call


def test_an_entry_is_compiled_once(kernels: Path, calls: Calls) -> None:
    calls("compiled")
    kept = compiled_files(kernels)
    assert {file.stat().st_mode & 0o777 for file in kept} == {0o600}
    assert kernels.stat().st_mode & 0o777 == 0o700
    calls("loaded")
    assert compiled_files(kernels) == kept


class Trap:
    """What is unpickled if anything is."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("unpickled",)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def put_a_pipe_there(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "cut in its checksum": lambda file: os.truncate(file, 10),
    "a bit": flip_a_bit,
    "another pickle": lambda file: file.write_bytes(pickle.dumps(Trap())),
    "a link": lambda file: file.symlink_to(file.rename(file.with_suffix(".real"))),
    "writable by others": lambda file: file.chmod(0o666),
    "a pipe": put_a_pipe_there,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_compiled_again_and_one_warning_says_so(
    kernels: Path, calls: Calls, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls("compiled")
    kept = compiled_files(kernels)
    for file in kept:
        DAMAGE[damage](file)
    with caplog.at_level(logging.WARNING):
        calls("compiled")
    (record,) = caplog.records
    assert str(kernels) in record.getMessage()
    calls("loaded")
    assert {file.stat().st_mode & 0o777 for file in kept} == {0o600}


def test_a_file_of_another_user_is_not_used(kernels: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    calls("compiled")
    file = compiled_files(kernels)[0]
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(ValueError, match="not a file that the user alone can write"):
        files.read(file)


def fail(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("module", "name"), [(files.tempfile, "mkstemp"), (os, "replace")])
def test_without_room_an_entry_serves_its_process_and_one_warning_names_the_folder(
    kernels: Path,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: object,
    name: str,
) -> None:
    monkeypatch.setattr(module, name, fail)
    for _ in range(2):
        calls("compiled")
    (record,) = caplog.records
    assert record.getMessage() == f"compiled kernels are not kept in {kernels}: No space left on device"
    assert not [path for path in kernels.iterdir() if "triple" in path.name]


def test_a_folder_that_was_removed_meanwhile_is_made_again(kernels: Path, calls: Calls) -> None:
    shutil.rmtree(kernels)
    calls("compiled")
    assert kernels.stat().st_mode & 0o777 == 0o700
    calls("loaded")


def test_closures_are_not_kept(kernels: Path) -> None:
    """The names of files would not tell them apart."""

    def adder(number):
        @jit(entry=True)
        def add(x):
            return x + number

        return add

    assert [adder(number)(1) for number in (1, 10)] == [2, 11]
    addresses = [adder(number).address for number in (1, 10)]
    assert [ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(1) for address in addresses] == [2, 11]
    assert not [path for path in kernels.iterdir() if "add" in path.name]
