"""The tables of measured figures: measures them, keeps them, and writes the tables from what is kept.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python    # built for this machine
    python examples/readme_table.py --smollm2-int4 PACKED GGUF ... --smollm2-int4-all PACKED GGUF ... \\
        --smollm2-int8 PACKED GGUF ... --llama-1b-int4 PACKED GGUF ... --llama-1b-int4-all PACKED GGUF \\
        --llama-1b-int8 PACKED GGUF ...

Each option names a folder that quantkit packed, and the same model in llama.cpp's types. Models that are not named keep
the figures that they have in `measured.json`, and so do other instruction sets; without any option the tables are
written anew from that file alone. A machine with AVX-512 stands for one of AVX2 alone with `QUANTKIT_ISA=avx2`, and
llama.cpp built with `-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON`.

`ROWS` says what stands in the table of `examples/README.md` and what measures it: `compare_llama_cpp.py`, which takes
turns with llama.cpp, `quantkit bench`, or the clock around whole processes of `quantkit run`. Nothing is measured here
besides those. The project's README shows the rows of `HEADLINES`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from marks import write

HERE = Path(__file__).parent
RESULTS = HERE / "measured.json"
README, FRONT_PAGE = HERE / "README.md", HERE.parent / "README.md"
MARK = "measured"

QUANTKIT = (sys.executable, "-c", "from quantkit.cli import main; main()")
WARM_STARTS = 11
PROBES = 9
"""Measurements of the read bandwidth before and after each command."""

MODELS = {
    "smollm2-int4": "SmolLM2-135M int4",
    "smollm2-int4-all": "SmolLM2-135M int4, head too",
    "smollm2-int8": "SmolLM2-135M int8",
    "llama-1b-int4": "Llama-3.2-1B's shape, int4",
    "llama-1b-int4-all": "Llama-3.2-1B's shape, int4, head too; Q4_K_M",
    "llama-1b-int8": "Llama-3.2-1B's shape, int8",
}
"""Name of a model among the options -> in the table."""

Figures = dict[str, dict[str, Any]]
"""Test -> what was found."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    model : str
        Key of `MODELS`.
    what : str
        What was measured, in words.
    program : str
        Key of `PROGRAMS`.
    options : str
        What it is called with.
    test : str
        Which of its results stands here.
    field : str
        Which figure of the result is quantkit's.
    unit : str
        Key of `UNITS`.
    """

    model: str
    what: str
    program: str
    options: str
    test: str
    field: str = "quantkit"
    unit: str = "tokens/s"

    @property
    def how(self) -> str:
        """The command, without the model's files."""
        return f"{self.program} {self.options}"


COMPARISON = "compare_llama_cpp.py"


def compared(model: str, options: str, tests: Mapping[str, tuple[str, str]]) -> list[Row]:
    """Rows of one comparison with llama.cpp: test -> what it is, unit."""
    return [Row(model, what, COMPARISON, options, test, unit=unit) for test, (what, unit) in tests.items()]


PROMPT, GENERATION = ("prompt of 512 tokens", "tokens/s"), ("generation", "tokens/s")
DEEP = {
    "pp512 @ d4096": ("prompt of 512 behind 4,096 tokens", "tokens/s"),
    "tg32 @ d4096": ("generation behind 4,096 tokens", "tokens/s"),
}
BATCHES = {
    "pp512": PROMPT,
    "tg64": GENERATION,
    "tg64 b4": ("4 texts at once", "tokens/s"),
    "tg64 b16": ("16 texts at once", "tokens/s"),
}
TTFT = {"ttft2000": ("first token of a prompt of 2,000", "ms")}
ROWS = (
    *compared("smollm2-int4", "-p 512 -n 64 -b 1,4,16 --ttft 2000", BATCHES | TTFT),
    *compared("smollm2-int4", "-p 512 -n 32 -d 4096", DEEP),
    *compared("smollm2-int4-all", "-p 512 -n 64 -b 1,4,16", BATCHES),
    *compared("smollm2-int8", "-p 512 -n 64", {"pp512": PROMPT, "tg64": GENERATION}),
    *(
        row
        for model in ("llama-1b-int4", "llama-1b-int4-all", "llama-1b-int8")
        for row in compared(model, "-p 512 -n 32", {"pp512": PROMPT, "tg32": GENERATION})
    ),
    *(
        Row(model, "generation, share of read bandwidth", "bench", "-p 0 -n 64", "tg64", "bandwidth_share", "%")
        for model in MODELS
    ),
    Row("smollm2-int4", "generation, 4 threads on 2 cores", "bench", "-p 0 -n 64 -t 4", "tg64", "avg_ts"),
    Row("smollm2-int4", "cold start of `run`, compiles the kernels", "run", "-p Hello -n 1", "cold", "seconds", "s"),
    Row("smollm2-int4", "warm start of `run` to the first token", "run", "-p Hello -n 1", "warm", "seconds", "s"),
)

HEADLINES = {
    ("smollm2-int4", "pp512", COMPARISON),
    ("smollm2-int4", "tg64", COMPARISON),
    ("smollm2-int8", "tg64", COMPARISON),
    ("llama-1b-int4", "pp512", COMPARISON),
    ("llama-1b-int4", "tg32", COMPARISON),
    ("llama-1b-int4-all", "tg32", COMPARISON),
}
"""Model, test and program of the rows that the front page shows."""

UNITS: Mapping[str, Callable[[float], str]] = {
    "tokens/s": lambda value: f"{value:,.0f} tokens/s" if value >= 100 else f"{value:.1f} tokens/s",
    "ms": lambda value: f"{value:,.0f} ms",
    "s": lambda value: f"{value:.3g} s",
    "%": lambda value: f"{value:.0%}",
}


def compare(files: Sequence[str], options: Sequence[str]) -> Figures:
    """Take turns with llama.cpp."""
    lines = output([sys.executable, str(HERE / COMPARISON), *files, *options, "-o", "jsonl"])
    kept = ("quantkit", "llama.cpp", "ratio", "llama.cpp's best", "all")
    return {row["test"]: {name: row[name] for name in kept} for row in lines}


def bench(files: Sequence[str], options: Sequence[str]) -> Figures:
    """Run `quantkit bench`."""
    kept = ("avg_ts", "stddev_ts", "bandwidth_gbs", "bandwidth_share", "n_threads")
    lines = output([*QUANTKIT, "bench", files[0], *options, "-o", "jsonl"])
    return {row["test"]: {name: row[name] for name in kept} for row in lines}


def starts(files: Sequence[str], options: Sequence[str]) -> Figures:
    """Time whole processes of `quantkit run`: once with an empty cache, then, medians, with a full one."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"QUANTKIT_CACHE_DIR": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile Python's own code again
        seconds = []
        for _ in range(1 + WARM_STARTS):
            begin = time.perf_counter()
            command = [*QUANTKIT, "run", files[0], *options]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            seconds.append(time.perf_counter() - begin)
    return {"cold": {"seconds": seconds[0]}, "warm": {"seconds": statistics.median(seconds[1:])}}


PROGRAMS: Mapping[str, Callable[[Sequence[str], Sequence[str]], Figures]] = {
    COMPARISON: compare,
    "bench": bench,
    "run": starts,
}
"""What measures, by the name that the table gives it: model's files, options -> figures."""


def output(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that a command prints, one a line; ends this program where the command fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        sys.exit(process.returncode)


def conditions(files: Sequence[str], repetitions: int, bandwidths: Sequence[float]) -> dict[str, Any]:
    """What the figures of a model were measured on, and with."""
    import quantkit
    from quantkit.engine.machine import cpu_name, usable_cores
    from quantkit_kernels.simd import ISA

    return {
        "processor": cpu_name(),
        "cores": usable_cores(),
        "instruction_set": ISA,
        "read_gbs": round(statistics.median(bandwidths) / 1e9, 1),
        "quantkit": quantkit.__version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "files": [Path(file).name for file in files],
        "turns": repetitions,
        "date": time.strftime("%Y-%m-%d"),
    }


def measure(
    model: str, files: Sequence[str], repetitions: int, figures: dict[str, Figures]
) -> Iterator[dict[str, Any]]:
    """Run the commands of a model that lack figures; yields what `measured.json` shall hold of it, after each."""
    from quantkit.engine.machine import usable_cores
    from quantkit.evaluation.benchmark import open_probe

    probe = open_probe(usable_cores())
    bandwidths = probe.read_bandwidth(PROBES)
    for row in ROWS:
        if row.model != model or row.how in figures:
            continue
        print(f"{MODELS[model]}: {row.how}", file=sys.stderr, flush=True)
        repeated = [] if row.program == "run" else ["-r", str(repetitions)]
        figures[row.how] = PROGRAMS[row.program](files, [*row.options.split(), *repeated])
        bandwidths += probe.read_bandwidth(PROBES)
        yield {"conditions": conditions(files, repetitions, bandwidths), "figures": figures}


def table(results: Mapping[str, Any]) -> str:
    """The text between the marks: a row for each figure that there is, with the command that measures it."""
    return sections(results, ROWS, lambda row: [f"`{row.how}`"], "| how |", "---|")


def headlines(results: Mapping[str, Any]) -> str:
    """The text between the marks of the front page: a few rows, without what measures them."""
    shown = [row for row in ROWS if (row.model, row.test, row.program) in HEADLINES]
    return sections(results, shown, lambda row: [], "|", "")


def sections(
    results: Mapping[str, Any], shown: Sequence[Row], more: Callable[[Row], list[str]], names: str, rule: str
) -> str:
    """Of each instruction set the machine and a table of some rows; `more` cells of a row stand under `names`."""
    head = [f"| model | what | quantkit | llama.cpp | ratio {names}", f"|---|---|--:|--:|--:|{rule}"]
    return "\n\n".join(
        "\n".join(
            [
                *machines(models),
                "",
                *head,
                *(line([*cells(row, found), *more(row)]) for row, found in measured(models, shown)),
            ]
        )
        for models in results.values()
    )


def measured(models: Mapping[str, Any], shown: Sequence[Row]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """Some rows in the order of the models, with what was found."""
    for row in sorted(shown, key=lambda row: list(MODELS).index(row.model)):
        found = models.get(row.model, {}).get("figures", {}).get(row.how, {}).get(row.test)
        if found is not None:
            yield row, found


def line(cells: Sequence[str]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(cells)} |"


def cells(row: Row, found: Mapping[str, Any]) -> list[str]:
    """What stands in a row, but for what measures it; what has no counterpart in llama.cpp leaves its cells empty."""
    show = UNITS[row.unit]
    theirs = [show(found["llama.cpp"]), f"{found['ratio']:.2f}"] if "llama.cpp" in found else ["", ""]
    return [MODELS[row.model], row.what, show(found[row.field]), *theirs]


def machines(models: Mapping[str, Any]) -> Iterator[str]:
    """A line for each machine that models were measured on."""
    seen: dict[str, dict[str, Any]] = {}
    for model, name in MODELS.items():
        if model in models:
            about = models[model]["conditions"]
            key = f"{about['cores']} cores of {about['processor']} ({about['instruction_set']})"
            seen.setdefault(key, {})[name] = about
    for machine, named in seen.items():
        rates = [about["read_gbs"] for about in named.values()]
        turns = {about["turns"] for about in named.values()}
        which = f"{', '.join(named)}: medians" if len(seen) > 1 else "Medians"
        yield f"{which} of {span(turns)} turns, on {machine} that read {span(rates)} GB/s meanwhile."


def span(values: Collection[float]) -> str:
    """`33.2 to 40`."""
    low, high = min(values), max(values)
    return f"{low:g} to {high:g}" if low < high else f"{low:g}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for model, name in MODELS.items():
        parser.add_argument(f"--{model}", dest=model, nargs="+", metavar=("PACKED", "GGUF"), help=name)
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="turns of each test")
    parser.add_argument("--missing", action="store_true", help="run only what has no figures yet: go on after a break")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that keeps what was measured")
    parser.add_argument("--readme", type=Path, default=README, help="the file that holds the table")
    parser.add_argument("--front-page", type=Path, default=FRONT_PAGE, help="the file that holds its headlines")
    return parser.parse_args()


def main() -> None:
    """Measure the models that were named and keep the figures of each command as it ends; then write the tables."""
    options = parse()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    asked = {model: getattr(options, model) for model in MODELS if getattr(options, model)}
    if asked:
        from quantkit_kernels.simd import ISA

        models = results.setdefault(ISA, {})
    for model, files in asked.items():
        figures = models.get(model, {}).get("figures", {}) if options.missing else {}
        for found in measure(model, files, options.repetitions, figures):
            models[model] = found
            options.results.write_text(json.dumps(results, indent=1) + "\n")
    for file, text in ((options.readme, table(results)), (options.front_page, headlines(results))):
        write(file, MARK, text)


if __name__ == "__main__":
    main()
