"""The command line: one file per command; each parses, calls the library and prints.

What a command answers goes to stdout, everything else to stderr. A usage error ends with status 2, a failure with 1,
both with one line; `--debug` shows the traceback of a failure. Ctrl-C ends with 130, SIGTERM with 143, SIGHUP with 129,
a closed pipe with 141.

Commands are imported when they are named, and import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from quantkit.cli.options import Settings, debug_option
from quantkit.cli.signals import cleaning_up
from quantkit.errors import OptionError, QuantkitError

COMMANDS = ("convert", "run", "bench", "inspect", "verify", "eval", "dequantize")
"""Command names, in the order in which `--help` lists them; each is a module here with a function `command`."""

USAGE, FAILURE, INTERRUPTED, CLOSED_PIPE = 2, 1, 130, 141


class CommandLine(click.Group):
    """The group of all commands: loads them by name and turns exceptions into one line and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{name}", __name__).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Whoever read our output has left; the interpreter must not try to flush the rest on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(CLOSED_PIPE)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        _collect_seldom()
        settings = Settings()
        logging.basicConfig(format="%(levelname)s: %(message)s")
        for level, name in {logging.INFO: "note", logging.WARNING: "warning"}.items():
            logging.addLevelName(level, name)
        logging.getLogger("quantkit_kernels").setLevel(logging.INFO)
        try:
            with cleaning_up():
                extra |= {"standalone_mode": False, "obj": settings}
                status = super().main(args, prog_name or "quantkit", **extra)
            sys.exit(status or 0)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            _say(error.format_message(), getattr(error, "ctx", None))
            sys.exit(error.exit_code)
        except Exception as error:
            if settings.debug:
                traceback.print_exc()
            _say(_explain(error))
            sys.exit(USAGE if isinstance(error, OptionError) else FAILURE)


def _collect_seldom() -> None:
    """Let the garbage collector rest while modules are imported, and when all is over.

    It would go through the objects of numba's again and again, 180,000 at a warm start, which live as long as the
    process, and once more at its end: together a third of a short command's time.
    """
    gc.set_threshold(400_000, 20, 100)
    atexit.register(gc.freeze)


def _explain(error: Exception) -> str:
    match error:
        case QuantkitError():
            return str(error)
        case OSError(filename=str() as filename, strerror=str() as cause):
            return f"{filename}: {cause}"
        case OSError():
            return str(error)
        case MemoryError():
            return "out of memory"
        case _:
            return f"{type(error).__name__}: {error} (a bug in quantkit: please report it; --debug shows where)"


def _say(message: str, ctx: click.Context | None = None) -> None:
    hint = f" (see {ctx.command_path} --help)" if ctx else ""
    click.echo(f"error: {' '.join(message.split())}{hint}", err=True)


@click.group(
    cls=CommandLine,
    no_args_is_help=True,
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="quantkit", message="%(prog)s %(version)s")
def main() -> None:
    """Pack a language model's fp16 weights into int4/int8 blocks, and run it on a CPU straight from them.

    \b
      quantkit convert SmolLM2-135M-Instruct -o smollm2-int4
      quantkit run smollm2-int4 -p "What is the capital of France?"
    """
