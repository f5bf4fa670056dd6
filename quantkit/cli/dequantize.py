"""`quantkit dequantize`: a packed folder back to a fp16 checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from quantkit.cli.options import Command, force_option, model_argument, output_option


@click.command("dequantize", cls=Command, short_help="Unpack a packed model to a fp16 checkpoint.")
@model_argument
@output_option
@force_option
def command(model: Path, output: Path, force: bool) -> None:
    """Unpack MODEL into a fp16 Hugging Face folder that other tools read.

    The weights are those that the packed model computes with, rounded to fp16; what packing lost stays lost.
    """
    from quantkit.quantization.dequantization import dequantize

    dequantize(model, output, force=force)
    click.echo(f"{output}: fp16 checkpoint of {model}")
