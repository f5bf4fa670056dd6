"""Signals that end the process: what is half-written is removed on the way out."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Turn the signals of `ENDING` into `SystemExit(128 + number)`, as Ctrl-C is turned into `KeyboardInterrupt`.

    What the process was started to ignore, as by nohup, stays ignored.
    """

    def end(number: int, _: FrameType | None) -> NoReturn:
        for one in handled:
            signal.signal(one, signal.SIG_IGN)  # a second signal does not interrupt the way out
        sys.exit(128 + number)

    in_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    handled = [one for one in ENDING if in_main and signal.getsignal(one) is signal.SIG_DFL]
    for one in handled:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in handled:
            signal.signal(one, signal.SIG_DFL)
