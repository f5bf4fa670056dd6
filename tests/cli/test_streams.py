"""stdin, stdout and stderr as users have them: closed, full, of another encoding, a terminal; text that is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import tiny
from invocation import PROGRAM, Invoke
from quantkit.cli.streams import printable

HOSTILE = "\x1b]0;owned\x07\x9b31m"
SPELLED = r"\x1b]0;owned\x07\x9b31m"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(redirections: str, *args: object) -> subprocess.CompletedProcess[bytes]:
    """Run `quantkit` as a shell does that was given some redirections."""
    command = ["sh", "-c", f'"$@" {redirections}', "sh", *PROGRAM, *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=120)


def on_a_terminal(command: list[str], **environment: str) -> bytes:
    """What a command sends to the terminal that its stdout and stderr are."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**os.environ, **environment}
    )
    os.close(theirs)
    sent = b""
    try:
        while piece := os.read(ours, 4096):
            sent += piece
    except OSError:  # EIO: nobody has the other end open any more
        pass
    os.close(ours)
    process.wait(timeout=60)
    return sent


def with_hostile_names(folder: Path) -> Path:
    """A checkpoint with a tensor whose name is a command to a terminal; the model does not use it."""
    tiny.checkpoint(folder)
    tensors = {
        name: ("BF16", tiny.encode_dtype(tiny.weight(name, shape), "BF16"))
        for name, shape in tiny.shapes(tiny.config_of()).items()
    }
    tiny.write_safetensors(folder / "model.safetensors", {**tensors, HOSTILE: ("BF16", np.zeros((2, 2), np.uint16))})
    return folder


@pytest.mark.parametrize("command", ["run", "inspect", "--help", "no-such-command"])
def test_closed_streams_are_the_null_device(packed: Path, command: str) -> None:
    args = {"run": (packed, "-p", "hello", "-n", 4), "inspect": (packed,)}.get(command, ())
    as_usual = shell("", command, *args)
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = shell(closed, command, *args)
        assert done.returncode == as_usual.returncode
        assert b"Traceback" not in done.stderr
        assert done.stdout == (b"" if " >&-" in f" {closed}" else as_usual.stdout)


def test_a_closed_stdin_is_an_empty_prompt(packed: Path) -> None:
    done = shell("<&-", "run", packed)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == b"error: the prompt is empty: give at least one token"


def test_a_file_opened_later_does_not_become_stderr(checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    assert shell("2>&-", "convert", checkpoint, "-o", tmp_path / "out").returncode == 0
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (packed / weights).read_bytes()


@pytest.mark.parametrize("args", [("inspect",), ("run", "-p", "hello", "-n", "4")])
def test_a_full_stdout_is_named(packed: Path, args: tuple[str, ...]) -> None:
    done = shell(">/dev/full", args[0], packed, *args[1:])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == b"error: stdout: No space left on device"
    assert b"Traceback" not in done.stderr


def test_help_that_cannot_be_written() -> None:
    done = shell(">/dev/full", "--help")
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


def test_a_full_stderr_costs_no_answer(packed: Path) -> None:
    done = shell("2>/dev/full", "run", packed, "-p", "hello", "-n", 4)
    assert done.returncode == 0
    assert done.stdout


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "é → \udcff"), ({"PYTHONIOENCODING": "latin-1"}, "é ? ?"), (ASCII, "? ? ?")],
    ids=["UTF-8", "latin-1", "C"],
)
def test_what_an_encoding_lacks_is_replaced(environment: Mapping[str, str], expected: str) -> None:
    text = ascii("é → \udcff")
    script = (
        "from quantkit.cli.streams import echo, echo_answer, open_streams\n"
        f"open_streams(); echo_answer({text}); echo_answer('\\n'); echo({text})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, b"")
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    line = expected.replace("\udcff", "?").encode(encoding)
    assert done.stdout.splitlines() == [line, line]


def test_control_characters_are_spelled_out() -> None:
    assert printable(f"a{HOSTILE}\tb\n") == f"a{SPELLED}\tb\n"
    assert printable("progress 1%\rprogress 2%") == "progress 1%progress 2%"
    assert printable("é → 𝛼 שלום") == "é → 𝛼 שלום"


def test_an_answer_is_spelled_out_on_a_terminal_alone() -> None:
    command = [sys.executable, "-c", f"from quantkit.cli.streams import echo_answer; echo_answer({HOSTILE!r})"]
    assert on_a_terminal(command) == SPELLED.encode()
    assert subprocess.run(command, capture_output=True, check=True).stdout == HOSTILE.encode()


def test_names_in_a_checkpoint_command_no_terminal(tmp_path: Path) -> None:
    folder = with_hostile_names(tmp_path / "hostile")
    for args in (["inspect", str(folder)], ["convert", str(folder), "--dry-run", "-o", str(tmp_path / "out")]):
        sent = on_a_terminal([*PROGRAM, *args], TERM="dumb")
        assert b"\\x1b" in sent
        assert b"\x1b" not in sent
        assert b"\x9b" not in sent.replace("\x9b".encode(), b"\x9b")
        done = subprocess.run([*PROGRAM, *args], capture_output=True, check=True)
        assert not {b"\x1b", b"\x07"} & {bytes([byte]) for byte in done.stdout + done.stderr}


def test_an_error_commands_no_terminal(checkpoint: Path, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "hostile", model_type="llama")
    config = (folder / "config.json").read_text().replace('"llama"', '"\\u001b[31mllama"')
    (folder / "config.json").write_text(config)
    for args in ([], ["--debug"]):
        sent = on_a_terminal([*PROGRAM, *args, "inspect", str(folder)])
        assert b"[31mllama" in sent
        assert b"\x1b" not in sent


def test_a_template_commands_no_terminal(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "packed")
    (tmp_path / "packed/chat_template.jinja").write_text(f"{{{{ raise_exception({HOSTILE!r}) }}}}")
    result = invoke("run", tmp_path / "packed", "-p", "hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert SPELLED in result.stderr.splitlines()[-1]
    assert not {"\x1b", "\x07", "\x9b"} & set(result.stderr)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\x1b[31m\n", "[bold] é %s {} $".encode()])
def test_folders_with_odd_names(checkpoint: Path, packed: Path, tmp_path: Path, name: bytes) -> None:
    source, out = os.fsencode(tmp_path) + b"/" + name, os.fsencode(tmp_path) + b"/packed " + name
    os.symlink(checkpoint, source)
    for command, *paths in (("convert", source, b"-o", out), ("verify", out), ("inspect", out), ("inspect", source)):
        done = subprocess.run([*PROGRAM, command, *paths], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
    done = subprocess.run([*PROGRAM, "run", out, "-p", "hello", "-n", "2"], capture_output=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*PROGRAM, "verify", out + b"missing"], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"bug in quantkit" not in done.stderr


@pytest.mark.parametrize("option", ["-p", "-sys", "--stop"])
@pytest.mark.parametrize("environment", [{}, ASCII], ids=["UTF-8", "C"])
def test_an_argument_that_is_no_text_is_refused(packed: Path, option: str, environment: Mapping[str, str]) -> None:
    prompt = [] if option == "-p" else ["-p", "hello"]
    command = [*PROGRAM, "run", str(packed), *prompt, option]
    done = subprocess.run([*command, b"caf\xe9"], capture_output=True, env={**os.environ, **environment})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: Invalid value for '")
    assert b"not UTF-8 text (unexpected end of data at byte 3)" in done.stderr


def test_a_locale_does_not_change_what_a_prompt_says(packed: Path) -> None:
    def answer(environment: Mapping[str, str], *args: str | bytes, stdin: bytes = b"") -> bytes:
        command = [*PROGRAM, "run", packed, "-n", "4", "--temp", "0", *args]
        done = subprocess.run(command, capture_output=True, input=stdin, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        return done.stderr.split(b"prompt:")[1].split(b"tokens")[0]

    text = "é → ü".encode()
    expected = answer({}, "-p", text)
    assert answer(ASCII, "-p", text) == answer(ASCII, stdin=text) == answer({}, stdin=text) == expected


def test_a_stdin_that_is_no_text_is_refused(packed: Path) -> None:
    done = subprocess.run([*PROGRAM, "run", packed], input=b"abc\xff", capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: stdin: not UTF-8 text (invalid start byte at byte 3)\n"
