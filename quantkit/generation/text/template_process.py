"""The process that renders a chat template, seen from here: started when first needed, or early; ended with its owner.

`template_worker.py` is what it runs, and says why it is a process. It is kept between texts, because starting it takes
50 ms and rendering less than one; who knows that a text will come starts it beside other work. Limits are the operating
system's, in processor time and memory, so that a busy machine makes nothing fail.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from quantkit.errors import GenerationError, QuantkitError, UnsupportedError

CPU_SECONDS = 10
MEMORY_BYTES = 512_000_000
CHARACTERS = 16_000_000
"""Limits of one text; of the memory, Python and jinja2 take a tenth."""

ERRORS: Mapping[str, tuple[type[QuantkitError], str]] = {
    "syntax": (UnsupportedError, "the chat template, {message}"),
    "sandbox": (UnsupportedError, "the chat template leaves the sandbox: {message}"),
    "unknown": (UnsupportedError, "the chat template uses what templates do not have: {message}"),
    "refused": (GenerationError, "the chat template refuses these messages: {message}"),
    "length": (GenerationError, f"the chat template writes more than {CHARACTERS:,} characters"),
    "memory": (GenerationError, f"the chat template takes more than {MEMORY_BYTES // 10**6} MB of memory"),
    "time": (GenerationError, f"the chat template takes more than {CPU_SECONDS} seconds"),
    "lost": (GenerationError, "the process that renders the chat template ended ({message})"),
}
"""What may go wrong -> the error's class, and its text behind the name of the template's file."""


_EARLY: list[TemplateProcess] = []
"""What `start_early` started, until a template asks for it."""


def start_early() -> None:
    """Start the process that the next template to be opened will use, so that it starts while a model is loaded."""
    if not _EARLY:
        _EARLY.append(TemplateProcess())
    with suppress(OSError):  # whoever renders will say so
        _EARLY[0].start()


def take_process() -> TemplateProcess:
    """Return a process for one checkpoint's template: one that was started early, or one that will be when needed."""
    return _EARLY.pop() if _EARLY else TemplateProcess()


class TemplateProcess:
    """Renders one checkpoint's chat template; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self) -> None:
        """Start the process now; raises `OSError` when it cannot be started."""
        with self._lock:
            self._running()

    def render(self, source: str, variables: Mapping[str, Any], now: datetime | None = None) -> dict[str, str]:
        """Return `{"text": ...}`, or `{"error": a key of ERRORS, "message": ...}`.

        Raises
        ------
        TypeError, ValueError, RecursionError
            When the variables cannot be written as JSON.
        OSError
            When the process cannot be started.
        """
        told = now and now.isoformat()
        request = json.dumps({"source": source, "variables": variables, "now": told}, default=_plain).encode()
        with self._lock:
            process = self._running()
            try:
                answer = _ask(process, request)
            except BaseException:  # an interruption, for instance: the answer would be taken for the next one's
                self._end()
                raise
            if answer is None:
                status = self._end()
                return {"error": "time" if status == -signal.SIGXCPU else "lost", "message": f"status {status}"}
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, started anew if it has ended or belongs to the process that this one was forked from."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process, self._owner = _start(), os.getpid()
            self._finalizer = weakref.finalize(self, _end, self._process, self._owner)
        return self._process

    def _end(self) -> int | None:
        process, self._process = self._process, None
        self._finalizer()
        return process.returncode if process else None


def fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a mapping, a dataclass or a pydantic model, as other libraries write messages, else None."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return dict(dump()) if callable(dump) and not isinstance(value, type) else None


def _start() -> subprocess.Popen[bytes]:
    worker = Path(__file__).with_name("template_worker.py")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(worker)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    limits = {"memory": MEMORY_BYTES, "seconds": CPU_SECONDS, "characters": CHARACTERS}
    _send(process, json.dumps({"path": [place for place in sys.path if place], **limits}).encode())
    return process


def _ask(process: subprocess.Popen[bytes], request: bytes) -> dict[str, str] | None:
    """Return the answer to a request; None when the process ended instead."""
    assert process.stdout is not None
    _send(process, request)
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    answer: dict[str, str] = json.loads(line)
    return answer


def _send(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, which the reader will see


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():  # a fork has no say in it
        return
    process.kill()
    process.communicate()


def _plain(value: Any) -> Any:
    """Return what `json` takes for a mapping that is no dict, and for an object that has fields."""
    if (fields := fields_of(value)) is not None:
        return fields
    raise TypeError(f"{type(value).__name__} is neither a text, a number, a list nor a dict")
