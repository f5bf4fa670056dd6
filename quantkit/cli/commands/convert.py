"""`quantkit convert`: pack a downloaded checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantkit.cli.models import local_path
from quantkit.cli.options import Command, force_option, model_name, output_option, path, threads_option
from quantkit.cli.progress import Bar
from quantkit.cli.streams import echo

if TYPE_CHECKING:
    from quantkit.quantization.report import CalibrationReport, Report

BITS = {"4": "int4", "8": "int8"}


def _kinds(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    kinds = value.split(",") if value is not None else []
    for kind in kinds:
        if kind not in BITS.values() or kinds.count(kind) > 1:
            raise click.BadParameter(f"{value!r} is not a list of {', '.join(BITS.values())}", ctx, param)
    return kinds


def _overrides(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [value.rpartition("=") for value in values]
    for value, (pattern, _, _) in zip(values, pairs, strict=True):
        if not pattern:
            raise click.BadParameter(f"{value!r} is not of the form REGEX=KIND", ctx, param)
    return [(pattern, kind) for pattern, _, kind in pairs]


@click.command("convert", cls=Command, short_help="Pack a downloaded checkpoint.")
@click.argument("source", type=model_name)
@output_option
@click.option(
    "-q",
    "--quantize",
    metavar="KIND[,KIND]",
    callback=_kinds,
    help="Kind of the linear layers, int4 or int8; int4,int8 reads SOURCE once and writes DIR-int4 and DIR-int8  "
    "[default: int4]",
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
@click.option(
    "--calibration",
    type=path,
    metavar="FILE",
    help="UTF-8 text to calibrate int4 on: a third of the divergence, for minutes instead of seconds.",
)
@click.option("--recipe", type=path, metavar="FILE", help="Take both from a JSON or TOML file; options given here win.")
@click.option("--strict", is_flag=True, help="Refuse what would be left out, or made up for what is missing.")
@click.option("--dry-run", is_flag=True, help="Check the checkpoint and say what would be written; write nothing.")
@force_option
@threads_option
def command(
    source: str,
    output: Path,
    quantize: list[str],
    bits: str | None,
    overrides: list[tuple[str, str]],
    calibration: Path | None,
    recipe: Path | None,
    strict: bool,
    dry_run: bool,
    force: bool,
    threads: int | None,
) -> None:
    """Pack SOURCE, a checkpoint folder or a GGUF file, into the folder DIR.

    Linear layers become int4 (or what -q says), the embedding and the head int8; norms and biases stay f32.

    With --calibration the model reads a text, layer by layer, and int4 matrices are packed so that their outputs on it
    change least (GPTQ). 50,000 tokens are enough, and more are not taken. Measure the result on other text.

    What was interrupted goes on where it stopped when the same command is given again, unless it calibrates. Until then
    it is kept beside DIR, in a hidden folder .DIR.*.partial, which may be deleted.
    """
    asked = quantize or ([BITS[bits]] if bits else [])
    if bits and asked != [BITS[bits]]:
        raise click.UsageError(f"--quantize {','.join(quantize)} contradicts --bits {bits}")
    from quantkit.formats.output import check_outputs
    from quantkit.quantization.conversion import convert_all
    from quantkit.quantization.recipe import Recipe
    from quantkit.quantization.recipe.file import read_recipe

    base = read_recipe(recipe) if recipe else Recipe()
    recipes = [replace(base, quantize=kind) for kind in asked] or [base]
    several = {Path(f"{output}-{recipe.quantize}"): recipe for recipe in recipes}
    outputs = several if recipes[1:] else {output: recipes[0]}
    check_outputs(outputs, force=force, source=Path(source))  # before hours of downloading
    local = local_path(source, packed=False)
    with Bar("packing") as bar:
        reports = convert_all(
            local,
            outputs,
            overrides=overrides,
            calibration=calibration,
            strict=strict,
            dry_run=dry_run,
            force=force,
            threads=threads,
            progress=lambda now: bar.update(now.done, now.total, now.tensor),
        )
    for folder, report in reports.items():
        echo(f"{folder}:\n{_summary(report)}" if recipes[1:] else _summary(report))


def _summary(report: Report) -> str:
    from quantkit.cli.text import size, table

    lines = [_calibrated(report.calibration)] if report.calibration else []
    rows = [(row.kind, row.tensors, row.weights, size(row.nbytes)) for row in report.kinds]
    before, after = size(report.source_bytes), size(report.packed_bytes)
    lines.append(
        f"{report.bits_per_weight:.2f} bits per weight, {before} before, {after} after, "
        f"{report.seconds:.1f} s, peak memory {size(report.peak_rss)}"
    )
    return "\n".join([table(("kind", "tensors", "weights", "size"), rows), *lines])


def _calibrated(report: CalibrationReport) -> str:
    errors = report.output_errors
    line = f"calibrated on {report.tokens} tokens of {report.text}"
    if errors:
        mean, worst = sum(errors.values()) / len(errors), max(errors, key=errors.__getitem__)
        line += f"; error of outputs {mean:.2%}, at most {errors[worst]:.2%} ({worst})"
    if report.uncalibrated:
        line += f"\n{len(report.uncalibrated)} matrices met too few tokens, such as {report.uncalibrated[0]}"
    return line
