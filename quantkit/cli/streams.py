"""stdin, stdout and stderr, whatever they are connected to: the one place where commands read and print text.

A stream may be closed, of another encoding than UTF-8, full, or a terminal. What is printed holds text from checkpoints
(names of tensors, messages of templates, answers of models), which is data from the internet: control characters in it
would be commands to a terminal.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from quantkit.generation.text.plain import decode_text

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROL |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def open_streams() -> None:
    """Make the process's standard streams usable: closed ones become the null device, no character fails to print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It takes the lowest free descriptor, so that no file opened later becomes a standard stream.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (stays open)
    # "replace" prints ? for what the encoding lacks; stderr is Python's own "backslashreplace".
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def abandon_streams() -> None:
    """Write out what is left; where that fails, let it go to the null device, or the interpreter would try again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    r"""Return a text with its control characters (C0 and C1) spelled out, as `\x1b`.

    Line feeds and tabs stay; carriage returns, which would let a line overwrite itself, are dropped.
    """
    return text if text.isprintable() else text.translate(_CONTROL)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text and a line feed to stdout or stderr, with control characters spelled out.

    Raises
    ------
    OSError
        When stdout cannot be written (`BrokenPipeError` also for stderr): the error names it. What stderr cannot take
        for another reason is dropped.
    """
    try:
        write(f"{printable(text)}\n", err=err)
    except BrokenPipeError:
        raise
    except OSError:
        if not err:
            raise


def echo_answer(text: str) -> None:
    """Print a piece of a model's answer to stdout: spelled out as in `echo` on a terminal, else exactly as it is."""
    write(printable(text) if sys.stdout.isatty() else text)


def write(text: str, *, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        error.filename = stream.name.strip("<>")
        raise


def read_text(file: Path) -> str:
    """Return the UTF-8 text of a file, or of stdin where the name is `-`."""
    if str(file) == "-":
        return decode_text(sys.stdin.buffer.read(), "stdin")
    return decode_text(file.read_bytes(), str(file))
