"""The group of all commands: finds a command by its name, and turns what it raises into one line and a status.

The process around it, with its signals and standard streams, is `quantkit.cli.main`'s.
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
from click.shell_completion import shell_complete

from quantkit.cli import INTERRUPTED
from quantkit.cli.options import Settings, debug_option
from quantkit.cli.signals import cleaning_up
from quantkit.cli.streams import abandon_streams, echo, printable
from quantkit.errors import OptionError, QuantkitError

COMMANDS = ("convert", "calibrate", "run", "bench", "inspect", "verify", "eval", "dequantize", "list", "rm")
"""Names in the order of `--help`; each is a module of `commands` with a function `command`."""

USAGE, FAILURE, CLOSED_PIPE = 2, 1, 141
COMPLETION = "_QUANTKIT_COMPLETE"
"""Environment variable by which a shell asks for completions; click defines its values."""


class CommandLine(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"quantkit.cli.commands.{name}").command
        return command

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        sys.exit(self.run(args))

    def run(self, args: Sequence[str] | None = None) -> int:
        """Run a command with some arguments, by default those of the process; return the status to end with."""
        if request := os.environ.get(COMPLETION):
            return shell_complete(self, {}, "quantkit", COMPLETION, request)
        _collect_seldom()
        _log_to_stderr()
        arguments = sys.argv[1:] if args is None else list(args)
        settings = Settings()
        try:
            try:
                with cleaning_up(), self.make_context("quantkit", arguments, obj=settings) as ctx:
                    self.invoke(ctx)
                return 0
            except click.exceptions.Exit as end:  # after --help and --version
                return end.exit_code
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                return _report(error, settings)
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                echo("", err=True)  # ends the line on which the terminal shows ^C
            return INTERRUPTED
        except BrokenPipeError:  # whoever read our output has left
            return CLOSED_PIPE
        finally:
            abandon_streams()


def _collect_seldom() -> None:
    """Let the garbage collector rest while modules are imported, and when all is over.

    It would go through the objects of numba's again and again, 180,000 at a warm start, which live as long as the
    process, and once more at its end: together a third of a short command's time.
    """
    gc.set_threshold(400_000, 20, 100)
    atexit.register(gc.freeze)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    for level, name in {logging.INFO: "note", logging.WARNING: "warning"}.items():
        logging.addLevelName(level, name)
    for package in ("quantkit", "quantkit_kernels"):
        logging.getLogger(package).setLevel(logging.INFO)


def _report(error: BaseException, settings: Settings) -> int:
    """Say what went wrong; return the status."""
    match error:
        case BrokenPipeError():
            raise error
        case click.exceptions.NoArgsIsHelpError():
            echo(error.format_message(), err=True)
            return USAGE
        case click.ClickException():
            ctx = getattr(error, "ctx", None)
            hint = f" (see {ctx.command_path} --help)" if ctx else ""
            _say(f"{error.format_message()}{hint}")
            return error.exit_code
    if settings.debug:
        echo("".join(traceback.format_exception(error)), err=True)
    _say(_explain(error))
    return USAGE if isinstance(error, OptionError) else FAILURE


def _explain(error: BaseException) -> str:
    match error:
        case QuantkitError():
            return str(error)
        case OSError(filename=str() as filename, strerror=str() as cause):
            return f"{filename}: {cause}"
        case OSError():
            return error.strerror or str(error)
        case MemoryError():
            return "out of memory"
        case _:
            return f"{type(error).__name__}: {error} (a bug in quantkit: please report it; --debug shows where)"


def _say(message: str) -> None:
    echo(f"error: {' '.join(message.split())}", err=True)


@click.group(
    cls=CommandLine,
    no_args_is_help=True,
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="quantkit", message="%(prog)s %(version)s")
def command_line() -> None:
    """Pack a language model's fp16 weights into blocks of 4 to 8 bits, and run it on a CPU straight from them.

    \b
      quantkit convert SmolLM2-135M-Instruct -o smollm2-packed
      quantkit run smollm2-packed -p "What is the capital of France?"
    """
