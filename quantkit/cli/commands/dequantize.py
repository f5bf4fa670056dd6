"""`quantkit dequantize`: a packed folder back to a checkpoint of 16-bit weights."""

from __future__ import annotations

from pathlib import Path

import click

from quantkit.cli.models import local_path
from quantkit.cli.options import Command, force_option, model_argument, output_option
from quantkit.cli.streams import echo


@click.command("dequantize", cls=Command, short_help="Unpack a packed model to 16-bit weights.")
@model_argument
@output_option
@force_option
def command(model: str, output: Path, force: bool) -> None:
    """Unpack MODEL into a Hugging Face folder that other tools read.

    The weights are those that the packed model computes with, rounded to the 16-bit type of its source; what packing
    lost stays lost.
    """
    from quantkit.quantization.dequantization import dequantize

    dtype = dequantize(local_path(model, packed=True), output, force=force)
    echo(f"{output}: {dtype} checkpoint of {model}")
