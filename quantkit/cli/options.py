"""Options and arguments that several commands share, with the spellings that users of other tools know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


@dataclass
class Settings:
    """What holds for a whole invocation, whichever command it names (`Context.obj`)."""

    debug: bool = False


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).debug = True


def debug_option() -> click.Option:
    """Make the option `--debug`, which stands before or after the command's name."""
    text = "Show the traceback of a failure."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help=text)


class Command(click.Command):
    """A command of quantkit: takes `--debug`."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.append(debug_option())


model_argument = click.argument("model", type=click.Path(path_type=Path))
"""A packed folder, a downloaded checkpoint folder, or a GGUF file; whether it exists is the library's to say."""

threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Worker threads  [default: the physical cores allowed]"
)
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write."
)
force_option = click.option("--force", is_flag=True, help="Replace DIR if it exists.")


def integers(minimum: int) -> Any:
    """Make a callback that reads comma-separated integers from `minimum` up, as llama-bench takes them: `1,2,4`."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of integers such as 128 or 1,2", ctx, param) from None
        if min(numbers) < minimum:
            raise click.BadParameter(f"{min(numbers)} is below {minimum}", ctx, param)
        return numbers

    return read
