"""`quantkit bench`: speed of prompts and generation, in llama-bench's terms, beside what the machine can do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.commands.bench_output import FORMS, row
from quantkit.cli.models import local_path
from quantkit.cli.options import Command, integers, kv_option, mmap_option, model_argument, numa_option, plot_option
from quantkit.cli.streams import echo, printable

if TYPE_CHECKING:
    from quantkit.engine.model import Model
    from quantkit.evaluation.benchmark import Measurement, Test


def _list_option(
    *names: str, minimum: int, text: str, default: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that takes lists and ranges of integers, once or several times."""
    return click.option(
        *names,
        multiple=True,
        metavar="N,...",
        callback=integers(minimum),
        help=f"{text}  [default: {default}]" if default else text,
        default=default and (default,),
    )


@click.command("bench", cls=Command, short_help="Measure the speed of prompts and generation.")
@model_argument
@_list_option("-p", "--n-prompt", minimum=0, text="Prompt lengths.", default="512")
@_list_option("-n", "--n-gen", minimum=0, text="Tokens to generate.", default="128")
@_list_option("-d", "--n-depth", minimum=0, text="Tokens in the cache before.", default="0")
@_list_option("-b", "--batch", "-npl", minimum=1, text="Sequences decoded together.", default="1")
@_list_option("-t", "--threads", minimum=1, text="Worker threads  [default: the physical cores allowed]")
@kv_option
@numa_option
@mmap_option
@click.option(
    "-r", "--repetitions", default=5, show_default=True, type=click.IntRange(min=1), help="Runs of each test."
)
@click.option("--no-warmup", is_flag=True, help="Time the first run of each test as well.")
@click.option("-o", "--output", default="md", show_default=True, type=click.Choice(list(FORMS)), help="Form of output.")
@click.option("--ops", is_flag=True, help="Show where the time goes, by operation (one more run of each test).")
@plot_option("speeds and rooflines")
def command(
    model: str,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...] | None,
    kv_dtype: str,
    numa: str | None,
    mmap: bool,
    repetitions: int,
    no_warmup: bool,
    output: str,
    ops: bool,
    plot: Path | None,
) -> None:
    """Measure how fast MODEL reads a prompt (pp) and generates (tg), as llama-bench does.

    N is a list of numbers and ranges: 512,1024 or 0-4096+1024 or 1-16*2. Tests are named pp512, tg128, tg128 b4 (four
    sequences decoded together, all their tokens counted) and tg128 @ d4096 (behind 4096 tokens). Tokens are random, so
    no tokenizer is needed.

    GB/s counts the bytes of weights, keys and values that a test has to read, GMAC/s the multiply-adds of matrix
    products and attention. Their shares are those of this machine's read bandwidth and of its int8 peak, measured
    between the runs with as many threads; they drift on shared machines.
    """
    from quantkit.evaluation.benchmark import cases
    from quantkit.evaluation.roofline import Costs

    if ops and output == "csv":
        raise click.UsageError("--ops has no place in csv; ask for md, json or jsonl")
    if plot is not None:
        from quantkit.evaluation.plot import check_plot, draw

        check_plot(plot, [Path(model)])
    found: list[Measurement] = []
    costs: list[Costs] = []

    def rows() -> Iterator[dict[str, Any]]:
        options = {"repetitions": repetitions, "warmup": not no_warmup, "operations": ops}
        tests = cases(n_prompt, n_gen, n_depth, batch)
        loading = [{"threads": count, "kv_dtype": kv_dtype, "numa": numa, "mmap": mmap} for count in threads or (None,)]
        for loaded, measurement in _measure(local_path(model), tests, loading, options):
            found.append(measurement)
            costs[:] = [Costs(loaded)]
            yield row(model, loaded, measurement)

    for line in FORMS[output](rows()):
        echo(line)
    if plot is not None:
        name = printable(Path(model).resolve().name).encode(errors="replace").decode()
        draw(plot, name, found, costs[0])


def _measure(
    folder: Path, tests: Sequence[Test], loading: Sequence[dict[str, Any]], options: dict[str, Any]
) -> Iterator[tuple[Model, Measurement]]:
    """Load the model in each way and run all tests; the read bandwidth is kept for later commands."""
    from quantkit.cli.bus_error import explain_bus_errors
    from quantkit.evaluation.benchmark import measure, open_probe, remember_bandwidth
    from quantkit.generation.loading import load_model

    explain_bus_errors()
    context = max((test.positions for test in tests), default=None)
    for chosen in loading:
        with contextlib.closing(load_model(folder, context=context, **chosen)) as model:
            for measurement in measure(model, tests, open_probe(model.threads), **options):
                remember_bandwidth(model.threads, measurement.ceilings.read)
                yield model, measurement
