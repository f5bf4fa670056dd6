"""`quantkit convert`: pack a downloaded checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.models import local_path
from quantkit.cli.options import Command, force_option, model_name, output_option, path, threads_option
from quantkit.cli.progress import Bar
from quantkit.cli.streams import echo

if TYPE_CHECKING:
    from quantkit.quantization.recipe import Recipe
    from quantkit.quantization.report import AllocationReport, CalibrationReport, Report

METHODS = ("round", "search", "calibrate")
KINDS = ("mixed", "int4", "int5", "int6", "int8")
BITS = {"4": "int4", "5": "int5", "6": "int6", "8": "int8"}
GROUPS = {
    "What to write": ("output", "force"),
    "Which kinds": ("quantize", "bits", "overrides", "recipe"),
    "How codes are found": ("method", "calibration", "imatrix"),
    "Where mixed spends bits": ("target_bpw", "target_size", "sensitivities"),
    "What is checked and told": ("dry_run", "strict", "verbose", "report"),
}


def _kinds(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    kinds = value.split(",") if value is not None else []
    for kind in kinds:
        if kind not in KINDS or kinds.count(kind) > 1:
            raise click.BadParameter(f"{value!r} is not a list of {', '.join(KINDS)}", ctx, param)
    return kinds


def _overrides(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [value.rpartition("=") for value in values]
    for value, (pattern, _, _) in zip(values, pairs, strict=True):
        if not pattern:
            raise click.BadParameter(f"{value!r} is not of the form REGEX=KIND", ctx, param)
    return [(pattern, kind) for pattern, _, kind in pairs]


@dataclass(frozen=True)
class _Asked:
    """The options that say which kinds tensors get."""

    quantize: list[str]
    bits: str | None
    overrides: list[tuple[str, str]]
    recipe: Path | None
    target_bpw: float | None
    target_size: str | None
    sensitivities: str | None

    @property
    def kinds(self) -> list[str]:
        """What is asked for by name, bits or target; empty where a recipe or the default says it."""
        if self.bits and self.quantize and self.quantize != [BITS[self.bits]]:
            raise click.UsageError(f"--quantize {','.join(self.quantize)} contradicts --bits {self.bits}")
        kinds = self.quantize or ([BITS[self.bits]] if self.bits else [])
        given = [f"--{name.replace('_', '-')}" for name in self.of_mixed]
        if given and kinds and "mixed" not in kinds:
            raise click.UsageError(f"{given[0]} is for --quantize mixed, not for {','.join(kinds)}")
        return kinds or (["mixed"] if given else [])

    @property
    def of_mixed(self) -> dict[str, Any]:
        """What is said of `mixed` alone."""
        said = {name: getattr(self, name) for name in ("target_bpw", "target_size", "sensitivities")}
        return {name: value for name, value in said.items() if value is not None}

    def recipes(self) -> list[Recipe]:
        """Return what each output is to hold: what a file says, if any, and what options say, which win."""
        from quantkit.quantization.recipe import MIXED, Recipe
        from quantkit.quantization.recipe.file import read_recipe

        base = (read_recipe(self.recipe) if self.recipe else Recipe()).with_overrides(self.overrides)
        plain = Recipe(overrides=base.overrides)
        mixed = self.of_mixed
        if mixed.keys() & {"target_bpw", "target_size"}:
            mixed = {"target_bpw": None, "target_size": None, **mixed}
        asked = self.kinds or [base.quantize]
        return [
            replace(base, quantize=kind, **mixed) if kind == MIXED else replace(plain, quantize=kind) for kind in asked
        ]


@click.command("convert", cls=Command, groups=GROUPS, short_help="Pack a downloaded checkpoint.")
@click.argument("source", type=model_name)
@output_option
@force_option
@click.option(
    "--report",
    type=path,
    metavar="FILE",
    help="Write sizes, kinds, reasons and errors to a .json or .html file; --force replaces one.",
)
@click.option(
    "-q",
    "--quantize",
    metavar="KIND[,KIND]",
    callback=_kinds,
    help="mixed, or the kind of the linear layers: int4, int5, int6 or int8, as said above; int4,int8 writes DIR-int4 "
    "and DIR-int8, and reads SOURCE once  [default: mixed]",
)
@click.option("--bits", "--q-bits", type=click.Choice(list(BITS)), help="The same by its bits.")
@click.option(
    "--override",
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="REGEX=KIND",
    callback=_overrides,
    help="Kind of the tensors whose name the expression finds: int4, int5, int6, int8, f16, bf16, f32; repeatable, the "
    "last that finds a tensor decides.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How codes are found, as said above  [default: search; with --calibration, calibrate]",
)
@click.option(
    "--calibration",
    type=path,
    metavar="builtin|FILE",
    help="Text for --method calibrate: .txt or .jsonl, or the built-in one  [default: builtin]",
)
@click.option(
    "--imatrix",
    type=path,
    metavar="FILE",
    help="For --method search: importance file of llama.cpp or `quantkit calibrate`, which says what columns count.",
)
@click.option(
    "--recipe",
    "--quant-predicate",
    "recipe",
    type=path,
    metavar="FILE",
    help="Take -q and --override from a JSON or TOML file; those given here win.",
)
@click.option(
    "--target-bpw",
    type=float,
    metavar="BITS",
    help="Most bits per weight that the packed model may have.",
)
@click.option(
    "--target-size",
    metavar="SIZE",
    help="The same in bytes of its tensors, such as 98MB or 4.5GB  [default: what -q int4 takes]",
)
@click.option(
    "--sensitivities",
    type=click.Choice(["rule", "measured"]),
    help="Whether a rule says where bits matter, or the model reads a text to find out, for a loss that is 3 to 7 % "
    "smaller  [default: rule]",
)
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written, to the byte, and why.")
@click.option("-v", "--verbose", is_flag=True, help="List each tensor with its kind and the reason.")
@click.option("--strict", is_flag=True, help="Refuse what would be left out, or stand in for what is missing.")
@threads_option
def command(
    source: str,
    output: Path,
    force: bool,
    report: Path | None,
    method: str | None,
    calibration: Path | None,
    imatrix: Path | None,
    dry_run: bool,
    verbose: bool,
    strict: bool,
    threads: int | None,
    **asked: Any,
) -> None:
    """Pack SOURCE, a checkpoint folder, a GGUF file or a name ORG/NAME of the hub, into the folder DIR.

    Generating a token reads all weights once, so fewer bits are more tokens per second.

    \b
      kind       bits   error   what it is for
      int4        4.5   5e-3    linear layers: half the bytes of int8
      int5        5.5   1e-3    linear layers: a fifth more bytes, a third of the loss
      int6        6.5   3e-4    linear layers: nearly as good as int8, a fifth fewer bytes
      int8       8.25   3e-5    embedding and head; small models, layers that matter
      f16          16   3e-8    what must stay as it is, of a checkpoint in fp16
      bf16         16   2e-6    the same in bf16: what a checkpoint holds already loses nothing
      f32          32   0       norms, biases and routers

    The error is squared and relative, of SmolLM2-135M. By -q mixed, the default, each matrix becomes int4, int5, int6
    or int8, with more bits where these save most divergence for their bytes, up to a target: by default the bytes of -q
    int4, for three fifths of its loss. Embedding and head count like all matrices. By another -q, linear layers become
    that kind, and everything else what the table says. --override says otherwise.

    A rule says where bits matter. With --sensitivities measured, the model reads a short text once for each matrix:
    about a minute for one of 135M on two cores, six for 1B, a quarter of an hour for 7B, and as long again to read what
    --calibration would make of each. What it found is kept for other targets.

    \b
      method      time    loss    how codes are found
      round       8 s     0.060   the nearest ones in the range of 32 weights
      search      17 s    0.031   scales and mins that lose least where inputs are large
      calibrate   50 min  0.018   so that outputs on a text change least; 0.013 with the right text

    The time is that of a model of 1B on two cores, the loss the divergence of SmolLM2-135M from its fp16 weights, on
    text that it was not calibrated on. With calibrate the model reads a text, layer by layer, and matrices of int4 to
    int6 are packed so that their outputs on it change least (GPTQ). Norms before matrices of int5 to int8 are scaled,
    and these by the inverse, so that their inputs lose less (SmoothQuant). It takes up to 65,536 tokens of a text file,
    or of a .jsonl file of texts and dialogues. Text like that which the model will see is best; without any, there is a
    built-in one. Measure the result on other text. Of int8 alone, calibrate takes seconds.

    What was interrupted goes on where it stopped when the same command is given again. Until then it is kept beside
    DIR, in a hidden folder .DIR.*.partial, which may be deleted.
    """
    recipes = _Asked(**asked).recipes()
    from quantkit.formats.output import check_outputs
    from quantkit.quantization.calibration.text import check_calibration_file
    from quantkit.quantization.conversion import convert_all
    from quantkit.quantization.report.saved import check_report

    endings = [f"-{it.quantize}" for it in recipes] if recipes[1:] else [""]
    outputs = {Path(f"{output}{ending}"): it for ending, it in zip(endings, recipes, strict=True)}
    files = [report.parent / f"{report.stem}{ending}{report.suffix}" for ending in endings] if report else []
    check_outputs(outputs, force=force, source=Path(source))  # before hours of downloading
    if calibration:
        check_calibration_file(calibration)
    read = [Path(source), *(file for file in (calibration, imatrix, asked["recipe"]) if file)]
    for file in files:
        check_report(file, apart_from=[*outputs, *read], force=force)
    local = local_path(source, packed=False)
    with Bar("measuring") as inputs, Bar("packing") as bar:
        reports = convert_all(
            local,
            outputs,
            method=method,
            calibration=calibration,
            imatrix=imatrix,
            strict=strict,
            dry_run=dry_run,
            force=force,
            threads=threads,
            progress=lambda now: bar.update(now.done, now.total, now.tensor),
            measuring=lambda now: inputs.update(now.done, now.total, now.tensor),
        )
    for folder, found in reports.items():
        heading = [f"{folder}:"] if recipes[1:] else []
        echo("\n".join((*heading, *_lines(found, dry_run=dry_run, verbose=verbose))))
    for file, found in zip(files, reports.values(), strict=False):
        found.save(file)


def _lines(report: Report, *, dry_run: bool, verbose: bool) -> Iterator[str]:
    """Yield what is printed of a conversion: tables, and the sums in the last lines."""
    from quantkit.cli.text import size, table

    if verbose:
        cells: list[tuple[str, ...]] = [
            (row.name, row.kind, row.reason, "x".join(map(str, row.shape)), size(row.nbytes), _error(row.error))
            for row in report.tensors
        ]
        headers: tuple[str, ...] = ("tensor", "kind", "why", "shape", "size", "error")
        if report.allocation:
            costs = [_error(report.allocation.costs.get(row.name)) for row in report.tensors]
            headers, cells = (*headers, "lost in int4"), [(*row, cost) for row, cost in zip(cells, costs, strict=True)]
        yield table(headers, cells, left=3)
        yield ""
    if dry_run:
        rows = [
            (row.kind, "; ".join(row.reasons), row.tensors, row.weights, size(row.nbytes)) for row in report.reasons
        ]
        yield table(("kind", "why", "tensors", "weights", "size"), rows, left=2)
    else:
        yield table(
            ("kind", "tensors", "weights", "size"),
            [(row.kind, row.tensors, row.weights, size(row.nbytes)) for row in report.kinds],
        )
    before, after = size(report.source_bytes), size(report.packed_bytes)
    summary = f"{report.bits_per_weight:.2f} bits per weight, {before} before, {after} after"
    if report.allocation:
        yield _allocated(report.allocation)
    if report.calibration:
        yield _calibrated(report.calibration)
    if quantized := [(row.kept_codes, row.weights) for row in report.tensors if row.kept_codes is not None]:
        weights = sum(weights for _, weights in quantized)
        share = sum(kept * weights for kept, weights in quantized) / weights
        yield f"the source's codes: kept in {share:.2%} of {weights:,} weights"
    if not dry_run:
        yield f"{summary}, {report.seconds:.1f} s, peak memory {size(report.peak_rss)}"
        return
    yield f"{summary}; packing takes at most {size(report.memory)} of memory"
    files = sorted(report.files.items(), key=lambda item: -item[1])
    yield f"nothing was written; it would be {report.folder_bytes:,} bytes, of {size(report.disk_free)} free:"
    yield table(("file", "bytes"), [(name, f"{nbytes:,}") for name, nbytes in files])


def _calibrated(report: CalibrationReport) -> str:
    errors = report.output_errors
    line = f"calibrated on {report.tokens} tokens of {report.text}"
    if errors:
        mean, worst = sum(errors.values()) / len(errors), max(errors, key=errors.__getitem__)
        line += f"; error of outputs {mean:.2%}, at most {errors[worst]:.2%} ({worst})"
    if report.uncalibrated:
        count = f"{len(report.uncalibrated)} of {len(report.uncalibrated) + len(errors)}"
        line += f"\n{count} matrices met too few tokens and are packed as without a text: {report.uncalibrated[0]}"
        line += ", ..." if report.uncalibrated[1:] else ""
    return line


def _allocated(report: AllocationReport) -> str:
    from quantkit.cli.text import size

    line = f"mixed: at most {size(report.target)}, at least {size(report.least)}; sensitivities "
    if report.divergence is None:
        return f"{line}by a rule"
    return f"{line}measured: divergence about {report.divergence:.2g}, {report.all_int4:.2g} if all were int4"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}" if value else "0"
