"""What all commands have in common: quick help, statuses, one line per error, clean ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from quantkit.cli import COMMANDS

HELP_SECONDS = 0.3
PROGRAM = [sys.executable, "-c", "from quantkit.cli import main; main()"]


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
        begin = time.perf_counter()
        done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begin)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert min(seconds) < HELP_SECONDS


@pytest.mark.parametrize("args", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    assert not modules_after(*args) & {"numba", "numpy", "rich", "tokenizers", "jinja2"}


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_looking_at_a_model_needs_no_compiler(command: str, packed: Path) -> None:
    assert not modules_after(command, str(packed)) & {"numba", "llvmlite", "rich"}


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
def test_usage_errors_end_with_2_and_one_line(invoke, args: list[str]) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "--help" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [["run", "{}", "-p", "a"], ["bench", "{}"], ["inspect", "{}"], ["verify", "{}"], ["convert", "{}", "-o", "{}x"]],
)
def test_failures_end_with_1_and_one_line(invoke, args: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = invoke(*(arg.format(missing) for arg in args))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert str(missing) in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback(invoke, args: list[str], tmp_path: Path) -> None:
    result = invoke(*args, tmp_path / "missing")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_closed_pipe_ends_quietly(packed: Path) -> None:
    process = subprocess.Popen([*PROGRAM, "inspect", str(packed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


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
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"generation:" in errors
