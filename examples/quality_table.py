"""Speed at equal quality: what quantkit and llama.cpp make of the same weights, how well it answers and how fast.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python    # built for this machine
    python examples/quality_table.py CHECKPOINT wiki.test.raw --packed DIR ... --gguf FILE ...

CHECKPOINT is the 16-bit folder that all files were made of. Each packed folder and each GGUF file, which llama.cpp
itself runs, reads the same windows of the text, as `quantkit eval` and llama-perplexity do, and is compared with
the checkpoint; then all of them take turns at a prompt and at generation, as in `compare_llama_cpp.py`.

What was found is kept in `quality.json`, by instruction set, and written into `examples/README.md`: a row for each
file, and for each of llama.cpp's the fastest packed folder that diverges no more than it. Without arguments only the
tables are written anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from compare_llama_cpp import LlamaCpp, Quantkit, Test, gguf_models, in_turn
from marks import write
from numpy.typing import NDArray
from readme_table import README, line

import quantkit

RESULTS = Path(__file__).parent / "quality.json"
MARK = "quality"
TESTS = {"pp512": Test("pp512", 1, 512), "tg64": Test("tg64", 64, 1)}
"""Of speed: name in the file -> test."""
FLASH_ATTENTION = (0, 1)
"""Settings of llama.cpp; the faster one of each test counts."""

Row = dict[str, Any]
"""Of a file: `name`, `program`, `bytes`, `options` of a packed folder, figures of the text, tokens/s of each test."""


@dataclass
class _Window:
    """What stands for a sequence of `LlamaReader`: it reads one text, from its beginning."""

    position: int = 0

    def close(self) -> None:
        """Nothing to give back: the next window clears the context."""


class LlamaReader:
    """llama.cpp with a GGUF file, as `quantkit.evaluation.scores` reads a text with a model."""

    def __init__(self, llama: Any, model: Any, context_length: int, threads: int) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = context_length
        params.n_threads = params.n_threads_batch = self.threads = threads
        self._llama, self._context = llama, llama.llama_init_from_model(model, params)
        self.context_length = context_length
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def new_sequence(self) -> _Window:
        """Start a window."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        return _Window()

    def forward(self, batch: Sequence[tuple[_Window, Sequence[int]]], every: bool = False) -> NDArray[np.float32]:
        """Return the logits f32 `[tokens, vocab_size]` of the next tokens of the window."""
        llama, ((window, tokens),) = self._llama, batch
        step = llama.llama_batch_init(len(tokens), 0, 1)
        step.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            step.token[place], step.pos[place] = token, window.position + place
            step.n_seq_id[place], step.seq_id[place][0], step.logits[place] = 1, 0, True
        window.position += len(tokens)
        if llama.llama_decode(self._context, step):
            sys.exit("llama.cpp could not run a batch")
        logits = np.ctypeslib.as_array(llama.llama_get_logits(self._context), (len(tokens), self.vocab_size)).copy()
        llama.llama_batch_free(step)
        return logits

    def close(self) -> None:
        """Free the context."""
        self._llama.llama_free(self._context)


def quality(options: argparse.Namespace, llama: Any, models: Sequence[Any]) -> list[Row]:
    """Read the text with the checkpoint and with each file; return what was found of the files."""
    from quantkit.evaluation.quality import evaluations
    from quantkit.evaluation.scores import Pair, score

    tokenizer = quantkit.load_tokenizer(options.checkpoint)
    tokens = tokenizer.encode(options.text.read_text(), split_special_tokens=True)
    packed = [quantkit.load_model(folder, threads=options.threads) for folder in options.packed]
    readers = [LlamaReader(llama, model, options.ctx_size, options.threads) for model in models]
    contenders: list[Any] = [*packed, *readers]
    reference = quantkit.load_model(options.checkpoint, threads=options.threads)
    pairs = [Pair(0, place) for place in range(1, 1 + len(contenders))]
    bos_token_id = tokenizer.bos_token_id if tokenizer.adds_bos else None
    scores = score([reference, *contenders], pairs, tokens, options.ctx_size, options.chunks, bos_token_id=bos_token_id)
    about = [
        {"name": folder.name, "program": "quantkit", "bytes": model.nbytes, "options": recorded_options(folder)}
        for folder, model in zip(options.packed, packed, strict=True)
    ]
    about += [
        {"name": file.stem, "program": "llama.cpp", "bytes": llama.llama_model_size(model)}
        for file, model in zip(options.gguf, models, strict=True)
    ]
    for each in (reference, *contenders):
        each.close()
    return [row | figures(found) for row, found in zip(about, evaluations(scores), strict=True)]


def recorded_options(folder: Path) -> dict[str, Any]:
    """What a folder was converted with, as it says itself."""
    recorded: dict[str, Any] = json.loads((folder / "quantkit.json").read_text())["options"]
    return recorded


def figures(found: Any) -> dict[str, float]:
    """Of an evaluation, what the tables show."""
    divergence = found.divergence
    return {
        "mean_kl": divergence.mean_kl.value,
        "mean_kl_error": divergence.mean_kl.error,
        "same_top": divergence.same_top.value,
        "perplexity_ratio": divergence.perplexity_ratio.value,
    }


def speeds(options: argparse.Namespace, llama: Any, models: Sequence[Any]) -> list[dict[str, float]]:
    """Tokens per second of each file, packed folders first: medians of turns that all of them take."""
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(contextlib.closing(Quantkit(each, options.threads))) for each in options.packed]
        theirs = [
            LlamaCpp(llama, model, f"{file.stem}, fa {flash}", options.threads, flash, 512)
            for file, model in zip(options.gguf, models, strict=True)
            for flash in FLASH_ATTENTION
        ]
        found: list[dict[str, float]] = [{} for _ in (*ours, *models)]
        for test, samples in in_turn([*ours, *theirs], list(TESTS.values()), options.repetitions):
            rates = [test.figure(statistics.median(seconds)) for seconds in samples]
            first, step = len(ours), len(FLASH_ATTENTION)
            best = [max(rates[place : place + step]) for place in range(first, len(rates), step)]
            for row, rate in zip(found, rates[:first] + best, strict=True):
                row[test.name] = rate
    return found


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on, and with."""
    from quantkit.engine.machine import cpu_name
    from quantkit_kernels.simd import ISA

    return {
        "checkpoint": options.checkpoint.name,
        "text": options.text.name,
        "context": options.ctx_size,
        "windows": options.chunks,
        "processor": cpu_name(),
        "instruction_set": ISA,
        "threads": options.threads,
        "turns": options.repetitions,
        "llama-cpp-python": version("llama-cpp-python"),
        "date": time.strftime("%Y-%m-%d"),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure quality, then speed, of all files."""
    with gguf_models(options.gguf) as (llama, models):
        rows = quality(options, llama, models)
        found = speeds(options, llama, models)
    return {"conditions": conditions(options), "rows": [row | rates for row, rates in zip(rows, found, strict=True)]}


def tables(results: Mapping[str, Any]) -> str:
    """The text between the marks: all files, as the first instruction set runs them, then equal quality on each."""
    first = next(iter(results.values()))
    about, rows = first["conditions"], in_order(first)
    return "\n".join(
        [
            f"{about['checkpoint']}: {about['windows']} windows of {about['context']} tokens of `{about['text']}`; "
            f"{measured_on(first)}.",
            "",
            "| file | weights | mean KL | same likeliest token | prompt of 512 | generation |",
            "|---|--:|--:|--:|--:|--:|",
            *(line(file_cells(row)) for row in rows),
            "",
            "Beside each file of llama.cpp, the packed folder that generates fastest of those that diverge no more:",
            *(text for found in results.values() for text in equal_quality_table(found)),
        ]
    )


def in_order(found: Mapping[str, Any]) -> list[Row]:
    """The rows of one instruction set, small files first."""
    return sorted(found["rows"], key=lambda row: row["bytes"])


def measured_on(found: Mapping[str, Any]) -> str:
    """What speeds are, and of what machine."""
    about = found["conditions"]
    return (
        f"tokens per second, medians of {about['turns']} turns, {about['threads']} threads on "
        f"{about['processor']} ({about['instruction_set']})"
    )


def equal_quality_table(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the second table, for one instruction set."""
    ours = f"quantkit, {found['conditions']['instruction_set']}"
    yield ""
    yield line(["llama.cpp", ours, "weights", "mean KL", "prompt of 512", "generation"])
    yield "|---|---|--:|--:|--:|--:|"
    yield from (line(cells) for cells in equal_quality(in_order(found)))


def file_cells(row: Row) -> list[str]:
    """What stands in the row of a file."""
    return [
        f"{row['program']} {row['name']}",
        f"{row['bytes'] / 1e6:.1f} MB",
        f"{row['mean_kl']:.5f} ± {row['mean_kl_error']:.5f}",
        f"{row['same_top']:.1%}",
        *(f"{row[test]:,.0f}" for test in TESTS),
    ]


def equal_quality(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the cells of the second table; a file that no folder is as good as has no row."""
    ours, theirs = ([row for row in rows if (row["program"] == "quantkit") is own] for own in (True, False))
    for file in theirs:
        as_good = [row for row in ours if row["mean_kl"] <= file["mean_kl"]]
        if not as_good:
            continue
        best = max(as_good, key=lambda row: row["tg64"])
        yield [
            file["name"],
            best["name"],
            f"{best['bytes'] / file['bytes']:.0%}",
            f"{best['mean_kl']:.4f} / {file['mean_kl']:.4f}",
            *(f"{best[test] / file[test]:.2f}x" for test in TESTS),
        ]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder of 16-bit weights")
    parser.add_argument("text", type=Path, nargs="?", help="text that nothing was calibrated on")
    parser.add_argument("--packed", type=Path, nargs="+", default=[], metavar="DIR", help="folders of quantkit")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], metavar="FILE", help="files of llama.cpp")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=24, help="windows to read")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=9, help="turns of each test")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that keeps what was measured")
    parser.add_argument("--readme", type=Path, default=README, help="the file that holds the tables")
    options = parser.parse_args()
    if options.checkpoint and not options.text:
        parser.error("the text is missing")
    return options


def main() -> None:
    """Measure, where a checkpoint is named; write the tables."""
    options = parse()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.checkpoint:
        found = measure(options)
        results[found["conditions"]["instruction_set"]] = found
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    write(options.readme, MARK, tables(results))


if __name__ == "__main__":
    main()
