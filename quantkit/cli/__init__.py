"""The command line. `main` is the program `quantkit`: how a process of it begins and ends.

`program.py` is the group of all commands, `commands/` holds one file for each. What a command answers goes to stdout,
everything else to stderr, both through `streams.py`. A usage error ends with status 2, a failure with 1, each with one
line; `--debug` shows the traceback of a failure. Ctrl-C ends with 130, SIGTERM with 143, SIGHUP with 129, a closed pipe
with 141.

Nothing is imported here before `main` handles Ctrl-C. Commands are imported when they are named, and import what they
need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in `quantkit`: quick to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `quantkit` with some arguments, by default those of the process, and leave the process.

    Before a command runs there is nothing to clean up, and an exception at any line would show a traceback: Ctrl-C
    ends the process at once. While it runs, `signals.py` turns Ctrl-C into an exception. Afterwards all is done.
    """
    # Where Ctrl-C is ignored (nohup, background jobs of a script), it stays so.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _leave_at_once)
    from quantkit.cli.program import command_line
    from quantkit.cli.streams import open_streams

    open_streams()
    status = command_line.run(args)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _leave_at_once(*_: object) -> NoReturn:
    os._exit(INTERRUPTED)
