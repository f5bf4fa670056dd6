"""`quantkit calibrate`: measure which inputs of a model are large, for `convert --imatrix`."""

from __future__ import annotations

from pathlib import Path

import click

from quantkit.cli.models import local_path
from quantkit.cli.options import Command, model_argument, path, threads_option
from quantkit.cli.progress import Bar
from quantkit.cli.streams import echo


@click.command("calibrate", cls=Command, short_help="Measure which inputs are large, for convert --imatrix.")
@model_argument
@click.option(
    "-f",
    "--file",
    "text",
    type=path,
    default="builtin",
    metavar="FILE",
    help="UTF-8 text or .jsonl to read  [default: built-in]",
)
@click.option("-o", "--output", type=path, required=True, metavar="FILE", help="Importance file to write, GGUF.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@threads_option
def command(model: str, text: Path, output: Path, force: bool, threads: int | None) -> None:
    """Let MODEL, a checkpoint that is not packed, read a text, and measure the inputs of each matrix column by column.

    The file is an importance matrix as llama.cpp has them: `quantkit convert --imatrix FILE` and llama-quantize read
    it. Up to 65,536 tokens of the text are read. Text like that which the model will see is best; without any there is
    a built-in one. What was interrupted goes on where it stopped when the same command is given again. `convert
    --calibration` makes a better model still, and needs no file.
    """
    from quantkit.cli.text import size
    from quantkit.quantization.calibration.measuring import calibrate

    with Bar("measuring") as bar:
        found = calibrate(
            local_path(model, packed=False),
            output,
            text,
            threads=threads,
            force=force,
            progress=lambda now: bar.update(now.done, now.total, now.tensor),
        )
    echo(f"{output}: inputs of {found.matrices} matrices on {found.tokens} tokens of {found.text}")
    if found.rare:
        echo(f"{len(found.rare)} experts were rarely seen, such as {found.rare[0]}")
    echo(f"{found.seconds:.1f} s, peak memory {size(found.peak_rss)}, at most {size(found.memory)} were expected")
