"""`quantkit bench`: speed of prompts and generation, in llama-bench's terms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.options import Command, integers, model_argument

if TYPE_CHECKING:
    from quantkit.benchmark import Measurement
    from quantkit.engine import Model


@click.command("bench", cls=Command, short_help="Measure the speed of prompts and generation.")
@model_argument
@click.option(
    "-p", "--n-prompt", default="512", show_default=True, metavar="N,...", callback=integers(0), help="Prompt lengths."
)
@click.option(
    "-n", "--n-gen", default="128", show_default=True, metavar="N,...", callback=integers(0), help="Tokens to generate."
)
@click.option(
    "-d",
    "--n-depth",
    default="0",
    show_default=True,
    metavar="N,...",
    callback=integers(0),
    help="Tokens in the cache before.",
)
@click.option(
    "-t",
    "--threads",
    metavar="N,...",
    callback=integers(1),
    help="Worker threads  [default: the physical cores allowed]",
)
@click.option(
    "-r", "--repetitions", default=5, show_default=True, type=click.IntRange(min=1), help="Runs of each test."
)
@click.option(
    "-o", "--output", default="md", show_default=True, type=click.Choice(["md", "json"]), help="Form of the answer."
)
def command(
    model: Path,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: tuple[int, ...],
    threads: tuple[int, ...] | None,
    repetitions: int,
    output: str,
) -> None:
    """Measure how fast MODEL reads a prompt (pp) and generates (tg), as llama-bench does.

    Tokens are random, so no tokenizer is needed. For generation, GB/s counts the weights that each token reads, and the
    share is that of the read bandwidth measured with as many threads.
    """
    from quantkit.benchmark import cases, measure, measure_bandwidth
    from quantkit.load import load_model

    tests = cases(n_prompt, n_gen, n_depth)
    rows = []
    for count in threads or (None,):
        loaded = load_model(model, threads=count)
        try:
            bandwidth = measure_bandwidth(loaded.threads)
            rows += [_row(model, loaded, found, bandwidth) for found in measure(loaded, tests, repetitions)]
        finally:
            loaded.close()
    click.echo("\n".join(_FORMS[output](rows)))


def _row(path: Path, model: Model, found: Measurement, bandwidth: float) -> dict[str, Any]:
    """One measurement under llama-bench's JSON keys; the last three are quantkit's own, in GB/s."""
    import quantkit
    from quantkit.machine import cpu_name

    rate = found.read_rate
    return {
        "build_version": quantkit.__version__,
        "cpu_info": cpu_name(),
        "backends": "CPU",
        "model_filename": str(path),
        "model_type": model.config["model_type"],
        "model_size": model.nbytes,
        "model_n_params": sum(math.prod(spec.shape) for spec in model.program.tensors.values()),
        "n_threads": model.threads,
        "n_prompt": found.test.n_prompt,
        "n_gen": found.test.n_gen,
        "n_depth": found.test.n_depth,
        "test": found.test.name,
        "avg_ns": found.avg_ns,
        "stddev_ns": found.stddev_ns,
        "avg_ts": found.avg_ts,
        "stddev_ts": found.stddev_ts,
        "samples_ns": list(found.samples_ns),
        "samples_ts": found.samples_ts,
        "read_gbs": rate and rate / 1e9,
        "bandwidth_gbs": bandwidth / 1e9,
        "bandwidth_share": rate and rate / bandwidth,
    }


def _markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    from quantkit.cli.text import size, table

    headers = ("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "share")
    cells = [
        (
            row["model_type"],
            size(row["model_size"]),
            f"{row['model_n_params'] / 1e6:.2f} M",
            row["backends"],
            row["n_threads"],
            row["test"],
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
            f"{row['read_gbs']:.1f}" if row["read_gbs"] else "",
            f"{row['bandwidth_share']:.0%}" if row["bandwidth_share"] else "",
        )
        for row in rows
    ]
    yield table(headers, cells, markdown=True)
    bandwidths = {row["n_threads"]: row["bandwidth_gbs"] for row in rows}
    reads = ", ".join(f"{rate:.1f} GB/s with {threads}" for threads, rate in bandwidths.items())
    yield f"\nread bandwidth by threads: {reads}; {rows[0]['cpu_info']}; quantkit {rows[0]['build_version']}"


def _json(rows: list[dict[str, Any]]) -> Iterator[str]:
    import json

    yield json.dumps(rows, indent=2)


_FORMS = {"md": _markdown, "json": _json}
