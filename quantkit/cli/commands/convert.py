"""`quantkit convert`: pack a downloaded checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantkit.cli.options import Command, force_option, output_option, path, threads_option
from quantkit.cli.progress import Bar
from quantkit.cli.streams import echo

if TYPE_CHECKING:
    from quantkit.quantization.report import Report

BITS = {"4": "int4", "8": "int8"}


def _overrides(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [value.rpartition("=") for value in values]
    for value, (pattern, _, _) in zip(values, pairs, strict=True):
        if not pattern:
            raise click.BadParameter(f"{value!r} is not of the form REGEX=KIND", ctx, param)
    return [(pattern, kind) for pattern, _, kind in pairs]


@click.command("convert", cls=Command, short_help="Pack a downloaded checkpoint.")
@click.argument("source", type=path)
@output_option
@click.option(
    "-q", "--quantize", type=click.Choice(list(BITS.values())), help="Kind of the linear layers  [default: int4]"
)
@click.option("--bits", "--q-bits", type=click.Choice(list(BITS)), help="The same by its bits.")
@click.option(
    "--override",
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="REGEX=KIND",
    callback=_overrides,
    help="Kind of the tensors whose name the expression finds: int4, int8, f16, bf16, f32; repeatable.",
)
@click.option("--recipe", type=path, metavar="FILE", help="Take both from a JSON or TOML file; options given here win.")
@click.option("--strict", is_flag=True, help="Refuse what would be left out, or made up for what is missing.")
@click.option("--dry-run", is_flag=True, help="Check the checkpoint and say what would be written; write nothing.")
@force_option
@threads_option
def command(
    source: Path,
    output: Path,
    quantize: str | None,
    bits: str | None,
    overrides: list[tuple[str, str]],
    recipe: Path | None,
    strict: bool,
    dry_run: bool,
    force: bool,
    threads: int | None,
) -> None:
    """Pack SOURCE, a checkpoint folder or a GGUF file, into the folder DIR.

    Linear layers become int4 (or what -q says), the embedding and the head int8; norms and biases stay f32.
    """
    if bits and quantize and BITS[bits] != quantize:
        raise click.UsageError(f"--quantize {quantize} contradicts --bits {bits}")
    from quantkit.quantization.conversion import convert
    from quantkit.quantization.recipe import Recipe
    from quantkit.quantization.recipe_file import read_recipe

    base = read_recipe(recipe) if recipe else Recipe()
    asked = quantize or BITS.get(bits or "")
    with Bar("packing") as bar:
        report = convert(
            source,
            output,
            quantize=replace(base, quantize=asked) if asked else base,
            overrides=overrides,
            strict=strict,
            dry_run=dry_run,
            force=force,
            threads=threads,
            progress=lambda now: bar.update(now.done, now.total, now.tensor),
        )
    echo(_summary(report))


def _summary(report: Report) -> str:
    from quantkit.cli.text import size, table

    rows = [(row.kind, row.tensors, row.weights, size(row.nbytes)) for row in report.kinds]
    before, after = size(report.source_bytes), size(report.packed_bytes)
    return (
        table(("kind", "tensors", "weights", "size"), rows)
        + f"\n{report.bits_per_weight:.2f} bits per weight, {before} before, {after} after, "
        f"{report.seconds:.1f} s, peak memory {size(report.peak_rss)}"
    )
