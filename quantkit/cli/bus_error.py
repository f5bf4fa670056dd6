"""What a process says when a file that it has mapped is truncated under it, or cannot be read any more.

Models run straight from mapped files. A page of one that is gone raises SIGBUS at the instruction that touches it, in
any thread; Python's own handlers never run then, since that instruction would have to finish first. So a function goes
to the system by ctypes: it names the file and ends the process. What is converted is read with checks instead, see
`quantkit.formats.mapped`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from quantkit.cli.streams import printable

SA_SIGINFO = 4
ADDRESS = 16
"""Offset of the address in Linux's `siginfo_t`, on all machines of 64 bits."""

_ending = threading.Lock()


class _Action(ctypes.Structure):
    """`struct sigaction` of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def explain_bus_errors() -> None:
    """From now on, let SIGBUS end the process with a line that names the file, and status 1."""
    if sys.platform == "linux" and sys.maxsize > 2**32:
        action = _Action(ctypes.cast(_HANDLER, ctypes.c_void_p).value, flags=SA_SIGINFO)
        ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None)


def _explain(number: int, info: int, context: int) -> None:
    """Run in the thread that touched the page, which holds no lock there: it was about to read a number."""
    try:
        while not _ending.acquire(blocking=False):
            time.sleep(1)  # another thread ends the process
        file = mapped_file(ctypes.c_size_t.from_address(info + ADDRESS).value)
        what = f"{file}: was truncated, or cannot be read any more, while it was in use" if file else "bus error"
        os.write(2, os.fsencode(f"error: {printable(what)}\n"))
    finally:
        os._exit(1)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_explain)


def mapped_file(address: int) -> str:
    """Return the path of the file that is mapped at an address, nothing where there is none."""
    with open("/proc/self/maps", encoding=sys.getfilesystemencoding(), errors="surrogateescape") as maps:
        for line in maps:
            places, _, _, _, _, *path = line.rstrip("\n").split(maxsplit=5)
            begin, end = (int(place, 16) for place in places.split("-"))
            if begin <= address < end:
                return path[0] if path and path[0].startswith("/") else ""  # others are such as `[heap]`
    return ""
