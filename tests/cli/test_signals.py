"""A process that is asked to end leaves nothing half-written, says nothing, and tells by its status who asked."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from llvmlite import binding

import tiny
from quantkit.cli.signals import cleaning_up

CONVERT = """
import itertools, os, signal, sys
from quantkit.cli import main
from quantkit.quantization import pipeline

number, turn, original = int(sys.argv.pop(1)), int(sys.argv.pop(1)), pipeline.encode
turns = itertools.count(1)

def interrupted(*args, **options):
    if next(turns) == turn:
        os.kill(os.getpid(), number)  # in the middle of the work
    return original(*args, **options)

pipeline.encode = interrupted
main()
"""


def convert(
    number: int, source: Path, out: Path, before: Callable[[], object] | None = None, *, turn: int = 1
) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, "-c", CONVERT, str(number), str(turn), "convert", source, "-o", out]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_an_ended_convert_leaves_nothing(tmp_path: Path, number: int, status: int) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    done = convert(number, source, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (status, "", "")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_convert_says_that_it_can_go_on(tmp_path: Path, number: int, status: int) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    done = convert(number, source, tmp_path / "out", turn=30)  # behind the first ones, which are measured
    (left,) = tmp_path.glob(".out.*.partial")
    message = f"interrupted: what is finished is kept in {left}; the same command goes on from there"
    assert (done.returncode, done.stdout) == (status, "")
    said = [line for line in done.stderr.splitlines() if not line.startswith("note: compiling kernels")]
    assert said == [f"note: {message}"]
    assert convert(number, source, tmp_path / "out", turn=1000).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    source = tiny.checkpoint(tmp_path / "source")
    done = convert(signal.SIGHUP, source, tmp_path / "out", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/quantkit.json").exists()


def test_a_second_signal_does_not_interrupt_the_way_out() -> None:
    cleaned = []

    def work() -> None:
        with cleaning_up():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGHUP)
                cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ending:
        work()
    assert (ending.value.code, cleaned) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) is before


class Destroyed:
    """Gets a signal while its destructor runs, where an exception is lost."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_exception_that_a_destructor_loses_is_raised_again(number: int, error: type[BaseException]) -> None:
    def work() -> None:
        with cleaning_up():
            Destroyed(number)
            time.sleep(60)

    with pytest.raises(error):
        work()


class HalfMade:
    """Gets a signal in its constructor, after which its destructor does not find what it releases."""

    def __init__(self, number: int) -> None:
        os.kill(os.getpid(), number)
        self.handle = number

    def __del__(self) -> None:
        del self.handle


def test_nothing_is_said_of_what_a_signal_left_half_made(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    def work() -> None:
        with cleaning_up():
            HalfMade(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == []


def test_what_else_a_destructor_raises_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(unraisable.exc_type))
    with cleaning_up():
        HalfMade.__new__(HalfMade)
    assert said == [AttributeError]


def test_a_signal_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        with cleaning_up():
            importlib.import_module("interrupted")
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert sys.modules.pop("interrupted").whole


def test_a_signal_waits_until_llvmlite_notes_that_an_object_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left before, it would have LLVM free the module a second time."""
    source, target = binding.parse_assembly(""), binding.parse_assembly("")
    detach = type(source).detach

    def interrupted(module: binding.ModuleRef) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        detach(module)

    def work() -> None:
        with cleaning_up():
            target.link_in(source)
            time.sleep(60)

    monkeypatch.setattr(type(source), "detach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work()
    closed = source.closed
    monkeypatch.undo()
    detach(source)
    assert closed
