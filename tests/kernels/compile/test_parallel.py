"""Entries that are not on disk are compiled by several processes; whatever becomes of these, nothing is missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import quantkit_kernels
from quantkit_kernels.compile import compiler, folder, loading, parallel
from quantkit_kernels.interpreter.token_steps import add, select
from quantkit_kernels.simd import ISA

ENTRIES = [add, select]


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept meanwhile."""
    monkeypatch.setattr(quantkit_kernels, "cache_folder", lambda name: tmp_path / name)
    kept_in = folder.kernel_folder(ISA)
    assert kept_in is not None
    return kept_in


def compiled_here() -> int:
    """Ask for the address of each entry; return how many of them this process had to compile."""
    with mock.patch.object(compiler, "object_file", wraps=compiler.object_file) as compiling:
        assert all(loading.address_of(entry.py_func) for entry in ENTRIES)
    return compiling.call_count


def test_other_processes_leave_what_is_missing_on_disk(kernels: Path, caplog: pytest.LogCaptureFixture) -> None:
    parallel.announce.cache_clear()
    with caplog.at_level(logging.INFO):
        parallel.compile_beside(ENTRIES, 2)
    assert ["compiling kernels" in record.getMessage() for record in caplog.records] == [True]
    assert len(list(kernels.glob("*.o"))) == 2
    assert compiled_here() == 0


def test_nothing_is_started_for_what_is_there_or_for_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_start", lambda: pytest.fail("started"))
    parallel.compile_beside(ENTRIES, 1)
    assert compiled_here() == 2
    parallel.compile_beside(ENTRIES, 2)


def test_nothing_is_started_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_start", lambda: pytest.fail("started"))
    monkeypatch.setattr(quantkit_kernels, "cache_folder", None)
    parallel.compile_beside(ENTRIES, 2)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false", "/bin/cat"])
def test_processes_that_do_not_compile_are_done_without(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cannot be started, the second ends at once, the third answers and does nothing."""
    monkeypatch.setattr(sys, "executable", python)
    parallel.compile_beside(ENTRIES, 2)
    assert compiled_here() == 2


def test_an_interruption_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    start = parallel._start

    def recorded() -> subprocess.Popen[str]:
        started.append(start())
        return started[-1]

    def interrupted(worker: subprocess.Popen[str], waiting: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "_start", recorded)
    monkeypatch.setattr(parallel, "_feed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parallel.compile_beside(ENTRIES, 2)
    assert len(started) == 2
    assert all(worker.returncode is not None for worker in started)
