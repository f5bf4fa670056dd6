"""What all commands have in common: quick help, statuses, one line per error, clean ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from invocation import PROGRAM, Invoke
from quantkit.cli.program import COMMANDS

HELP_SECONDS = 0.3


def modules_after(*args: str) -> set[str]:
    """Names of the modules that a command has loaded when it ends."""
    script = (
        "import sys\nfrom quantkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_lists_every_command_at_once() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert min(seconds) < HELP_SECONDS  # of processor time: other processes do not count


@pytest.mark.parametrize("args", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    assert not modules_after(*args) & {"numba", "numpy", "rich", "tokenizers", "jinja2", "huggingface_hub"}


@pytest.mark.parametrize("args", [["inspect", "{}"], ["verify", "{}"], ["list", "--json"]])
def test_looking_at_a_model_needs_neither_compiler_nor_hub(args: list[str], packed: Path) -> None:
    loaded = modules_after(*(arg.format(packed) for arg in args))
    assert not loaded & {"numba", "llvmlite", "rich", "huggingface_hub"}


def test_what_is_compiled_already_runs_without_the_compiler(packed: Path) -> None:
    command = "run", str(packed), "-p", "a", "-n", "1"
    subprocess.run([*PROGRAM, *command], check=True, capture_output=True)
    loaded = modules_after(*command)
    unused = {"numba", "quantkit.quantization.conversion", "quantkit.models.gguf.reading", "quantkit.formats.schemes"}
    assert not loaded & unused


@pytest.mark.parametrize(
    "args",
    [
        ["no-such-command"],
        ["run"],
        ["run", "model", "--no-such-option"],
        ["run", "model", "-p", "a", "-f", "b"],
        ["run", "model", "-p", "a", "-n", "many"],
        ["convert", "model"],
        ["convert", "model", "-o", "out", "-q", "int3"],
        ["convert", "model", "-o", "out", "--override", "lm_head"],
        ["bench", "model", "-p", "12,x"],
        ["bench", "model", "-p", "-5"],
        ["bench", "model", "-t", "0"],
        ["bench", "model", "-o", "xml"],
        ["eval", "model"],
    ],
)
def test_usage_errors_end_with_2_and_one_line(invoke: Invoke, args: list[str]) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "--help" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [["run", "{}", "-p", "a"], ["bench", "{}"], ["inspect", "{}"], ["verify", "{}"], ["convert", "{}", "-o", "{}x"]],
)
def test_failures_end_with_1_and_one_line(invoke: Invoke, args: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = invoke(*(arg.format(missing) for arg in args))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert str(missing) in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback(invoke: Invoke, args: list[str], tmp_path: Path) -> None:
    result = invoke(*args, tmp_path / "missing")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize("error", [RuntimeError("broken"), Panic("broken"), RecursionError("broken")])
def test_what_nobody_foresaw_is_one_line(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("quantkit.formats.packed.verify", fail)
    result = invoke("verify", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {type(error).__name__}: broken (a bug in quantkit")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"], ["no-such-command"], ["inspect", "{}"]])
def test_a_closed_pipe_ends_quietly(args: list[str], packed: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [*PROGRAM, *(arg.format(packed) for arg in args)]
    for stderr in (subprocess.PIPE, theirs):
        done = subprocess.run(command, stdout=theirs, stderr=stderr, timeout=60)
        writes = "no-such-command" not in args or stderr == theirs
        assert done.returncode == (141 if writes else 2)
        assert b"Traceback" not in (done.stderr or b"")
    os.close(theirs)


def test_without_arguments_it_shows_its_help(invoke: Invoke) -> None:
    result = invoke()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == invoke("--help").stdout


INTERRUPTED_IMPORT = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from quantkit.cli import main
main(sys.argv[2:])
"""
"""A program that is `quantkit` but gets Ctrl-C while it imports a module."""


IMPORTED = ("quantkit.cli.program", "click", "quantkit.cli.commands.run", "numpy", "tokenizers", "numba._devicearray")


@pytest.mark.parametrize("module", IMPORTED)
def test_an_interrupt_while_modules_are_imported(module: str, packed: Path, tmp_path: Path) -> None:
    """The last one, which one process compiles with, would be an ImportError if the interrupt did not wait."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module, "run", packed, "-p", "a", "-t", "1"],
        capture_output=True,
        env=os.environ | {"QUANTKIT_CACHE_DIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith(b"note: compiling kernels")]
    assert (done.returncode, done.stdout, errors) == (130, b"", [])


def test_an_interrupt_ends_with_130(tmp_path: Path) -> None:
    endless = tiny.checkpoint(tmp_path / "endless", max_position_embeddings=1 << 20)
    subprocess.run([*PROGRAM, "convert", endless, "-o", tmp_path / "packed"], check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(
        [*PROGRAM, "run", tmp_path / "packed", "-p", "a", "-n", "-1", "--ignore-eos"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"generation:" in errors
