"""Options and arguments that several commands share, with the spellings that users of other tools know."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from quantkit.errors import OptionError
from quantkit.generation.text.plain import decode_utf8


@dataclass
class Settings:
    """What holds for a whole invocation, whichever command it names (`Context.obj`)."""

    debug: bool = False


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).debug = True


def debug_option() -> click.Option:
    """Make the option `--debug`, which stands before or after the command's name."""
    shown = "Show the traceback of a failure."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help=shown)


class Command(click.Command):
    """A command of quantkit: takes `--debug`.

    Parameters
    ----------
    groups : mapping of str to sequence of str, optional
        Headings of `--help`, and the names of the parameters below each; the others are below "Options".
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.append(debug_option())
        self._groups = groups or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        records = {option.name: record for option in options if (record := option.get_help_record(ctx))}
        for heading, names in self._groups.items():
            with formatter.section(heading):
                formatter.write_dl([records.pop(name) for name in names])
        with formatter.section("Options"):
            formatter.write_dl(list(records.values()))


def path(value: str) -> Path:
    """Type of arguments that are paths: `~` is the home folder; whether anything is there is the library's to say."""
    if not value:
        raise click.BadParameter("the path is empty")
    return Path(os.path.expanduser(value))


def model_name(value: str) -> str:
    """Type of arguments that name a model: a path, where `~` is the home folder, or a name on the hub."""
    return os.path.expanduser(value) if value else str(path(value))


def text(value: str) -> str:
    """Type of arguments that are texts: bytes that the locale cannot decode, surrogates in Python, are UTF-8."""
    if not any("\ud800" <= char <= "\udfff" for char in value):
        return value
    try:
        return decode_utf8(os.fsencode(value), "the argument")
    except (OptionError, UnicodeEncodeError) as error:
        raise click.BadParameter(str(error)) from None


model_argument = click.argument("model", type=model_name)
"""A packed folder, a downloaded checkpoint folder, a GGUF file, or a name on the hub; whether it exists is for
the library to say."""

threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Worker threads  [default: the physical cores allowed]"
)
numa_option = click.option(
    "--numa",
    type=click.Choice(["interleave", "distribute"]),
    callback=lambda ctx, param, value: value and "interleave",
    help="Spread the weights over all memory nodes of a machine with several sockets; two names for the same.",
)
mmap_option = click.option(
    "--mmap",
    is_flag=True,
    help="Leave the weights in the mapped file, whose memory other processes share; by default they are copied to huge "
    "pages, for faster generation, if at most half of the free memory is needed for that.",
)
KV_DTYPES = {"16": "int16", "8": "int8"}
kv_option = click.option(
    "--kv-bits",
    "kv_dtype",
    type=click.Choice(list(KV_DTYPES)),
    default="16",
    show_default=True,
    callback=lambda ctx, param, value: KV_DTYPES[value],
    help="Precision of the KV cache.",
)


def plot_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option `--plot FILE`; `text` says what is drawn."""

    def check(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and value.suffix not in (".png", ".svg"):
            raise click.BadParameter(f"{value} ends neither in .png nor in .svg", ctx, param)
        return value

    return click.option(
        "--plot",
        metavar="FILE",
        type=path,
        callback=check,
        help=f"Draw {text} into a .png or .svg file (needs the extra `plot`).",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
output_option = click.option("-o", "--output", type=path, required=True, metavar="DIR", help="Folder to write.")
force_option = click.option("--force", is_flag=True, help="Replace DIR if it exists.")


RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")


def integers(minimum: int) -> Any:
    """Make a callback that reads integers from `minimum` up as llama-bench takes them.

    A list `1,2,4`, ranges `1-4`, `0-4096+1024` and `1-16*2`, both together, and the option given several times.
    """

    def read(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...] | None:
        numbers = []
        for part in ",".join(values).split(",") if values else ():
            found = RANGE.fullmatch(part)
            if not found:
                cause = f"{part!r} is neither a number nor a range such as 0-4096+1024 or 1-16*2"
                raise click.BadParameter(cause, ctx, param)
            first, last, operator, by = found.groups()
            step = int(by or 1)
            number, end = int(first), int(last or first)
            if number > end or (last and (step < (2 if operator == "*" else 1) or (operator == "*" and not number))):
                raise click.BadParameter(f"{part!r} is no range: it never ends, or never begins", ctx, param)
            while number <= end:
                numbers.append(number)
                number = number * step if operator == "*" else number + step
        if numbers and min(numbers) < minimum:
            raise click.BadParameter(f"{min(numbers)} is below {minimum}", ctx, param)
        return tuple(numbers) or None

    return read
