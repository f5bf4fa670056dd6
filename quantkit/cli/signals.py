"""Signals that end a command: they become exceptions, so that what is half-written is removed on the way out."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNBROKEN = ("importlib.", "llvmlite.")
"""Packages whose functions are not left halfway: signals wait for them."""
RETRY = 0.01
"""Seconds until a signal is tried again that had to wait."""


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Turn SIGINT into `KeyboardInterrupt`, SIGTERM and SIGHUP into `SystemExit(128 + number)`, while the block runs.

    A signal waits while a module is imported: an exception there can be taken for the absence of a module, or leave an
    import lock locked, for which other threads then wait for ever. It waits for llvmlite: an exception between LLVM's
    taking over an object and llvmlite's noting it would have the object freed twice. An exception that is lost, since
    it was raised in a destructor or a callback, is raised again. It may leave objects half-made, whose destructors then
    fail: of that nothing is said. What the process was started to ignore, as by nohup, stays ignored.
    """
    arrived = 0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = number if number in ENDING else arrived
        if _is_unbroken(frame):
            signal.setitimer(signal.ITIMER_REAL, RETRY)
        elif arrived == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            for one in handled:
                signal.signal(one, signal.SIG_IGN)  # a second signal does not interrupt the way out
            raise SystemExit(128 + arrived)

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
            signal.setitimer(signal.ITIMER_REAL, RETRY)
        elif not arrived:
            report(unraisable)

    in_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    handled = [one for one in ENDING if in_main and signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, end) for one in ([*handled, signal.SIGALRM] if handled else [])}
    report, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    except BaseException as error:
        if arrived:
            traceback.clear_frames(error.__traceback__)  # what is half-made there is destroyed now
        raise
    finally:
        sys.unraisablehook = report
        if before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)


def _is_unbroken(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_globals.get("__name__", "").startswith(UNBROKEN):
        frame = frame.f_back
    return frame is not None
