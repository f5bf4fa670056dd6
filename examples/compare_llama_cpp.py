"""quantkit and llama.cpp side by side: prompts, generation, long contexts and many sequences at once, in turn.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python    # built for this machine
    python examples/compare_llama_cpp.py PACKED_FOLDER MODEL.gguf ... -p 512 -n 128 -d 0,4096 -b 1,4,16 --ttft 2000

All models are loaded in this process, run the same random tokens with the same threads, and take turns, so that
whatever else the machine does falls on all of them. Every GGUF file runs with flash attention off and on (`-fa`), and
with every `-ub`; the table sets the best of them, for each test, beside quantkit. Medians and their ratios are printed.

The tests are llama-bench's: `pp512` reads a prompt of 512 tokens, `tg128` generates 128, `@ d4096` with 4,096 tokens in
the cache before (put there once, untimed, and rolled back to after each turn); `b16` decodes 16 sequences together and
counts the tokens of all of them, as llama-batched-bench does; `ttft2000` is the time to the first token of a prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantkit
from quantkit.cli.text import table_line, table_rule

Steps = list[list[list[int]]]
"""What a test feeds: for each call, the new tokens of each sequence."""
COLUMNS = {"test": 16, "quantkit": 11, "llama.cpp": 11, "ratio": 5, "llama.cpp's best": 24}
"""Of the table: name and width."""


@dataclass(frozen=True)
class Test:
    """What is timed: `calls` batches of `tokens` new tokens for each of `batch` sequences that hold `depth` already."""

    name: str
    calls: int
    tokens: int
    batch: int = 1
    depth: int = 0
    in_milliseconds: bool = False

    def steps(self, vocabulary: int) -> Steps:
        """Random tokens, the same for everybody."""
        draw = functools.partial(random.Random(0).choices, range(vocabulary), k=self.tokens)
        return [[draw() for _ in range(self.batch)] for _ in range(self.calls)]

    def figure(self, seconds: float) -> float:
        """Tokens per second of all sequences together, or milliseconds."""
        return seconds * 1e3 if self.in_milliseconds else self.calls * self.tokens * self.batch / seconds


def tests_of(options: argparse.Namespace) -> list[Test]:
    """The tests that the options ask for, those that share a context one after the other."""
    tests = []
    for depth in options.n_depth:
        behind = f" @ d{depth}" if depth else ""
        tests += [Test(f"pp{n}{behind}", 1, n, depth=depth) for n in options.n_prompt if n]
        tests += [Test(f"ttft{n}{behind}", 1, n, 1, depth, True) for n in options.ttft if n]
        for batch in options.batch:
            together = f" b{batch}" if batch > 1 else ""
            tests += [Test(f"tg{n}{together}{behind}", n, 1, batch, depth) for n in options.n_gen if n]
    return tests


class Quantkit:
    """A packed folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.name = folder.name
        self._model = quantkit.load_model(folder, threads=threads)
        self.vocabulary = self._model.vocab_size

    @contextlib.contextmanager
    def ready(self, batch: int, depth: int, room: int) -> Iterator[Callable[[Steps], float]]:
        """Yield a function from steps to seconds, behind `depth` tokens in each of `batch` sequences."""
        with contextlib.ExitStack() as stack:
            sequences = [stack.enter_context(self._model.new_sequence()) for _ in range(batch)]
            if depth:
                self._model.forward([(sequence, filling(depth, self.vocabulary)) for sequence in sequences])
            for sequence in sequences:
                sequence.keep_state(depth)

            def run(steps: Steps) -> float:
                batches = [list(zip(sequences, step, strict=True)) for step in steps]
                begin = time.perf_counter()
                for batch in batches:
                    self._model.forward(batch).argmax(axis=1)
                seconds = time.perf_counter() - begin
                for sequence in sequences:
                    sequence.truncate(depth)
                return seconds

            yield run

    def close(self) -> None:
        """End the threads."""
        self._model.close()


class LlamaCpp:
    """A GGUF file under one of llama.cpp's settings, through its own batch functions."""

    def __init__(self, llama: Any, model: Any, name: str, threads: int, flash_attention: int, ubatch: int) -> None:
        self.name = name
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._llama, self._model = llama, model
        self._settings = {
            "n_threads": threads,
            "n_threads_batch": threads,
            "flash_attn_type": flash_attention,
            "n_ubatch": ubatch,
            "no_perf": True,
            "kv_unified": False,  # a cache for each sequence: faster where they share no prefix
        }

    @contextlib.contextmanager
    def ready(self, batch: int, depth: int, room: int) -> Iterator[Callable[[Steps], float]]:
        """Yield a function from steps to seconds, behind `depth` tokens in each of `batch` sequences."""
        llama = self._llama
        params = llama.llama_context_default_params()
        for name, value in self._settings.items():
            setattr(params, name, value)
        params.n_ctx, params.n_seq_max = batch * (depth + room), batch
        params.n_batch = max(room, 2048)
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            sys.exit(f"{self.name}: llama.cpp cannot make a context of {params.n_ctx} tokens")
        memory = llama.llama_get_memory(context)

        def decode(step: Any) -> None:
            if llama.llama_decode(context, step.struct):
                sys.exit(f"{self.name}: llama.cpp could not run a batch")

        def run(steps: Steps) -> float:
            batches = [_Batch(llama, step) for step in steps]
            begin = time.perf_counter()
            for step in batches:
                decode(step)
                llama.llama_get_logits(context)  # waits for the result
            seconds = time.perf_counter() - begin
            for sequence in range(batch):
                llama.llama_memory_seq_rm(memory, sequence, depth, -1)
            return seconds

        for first in range(0, depth, params.n_batch):
            part = filling(depth, self.vocabulary)[first : first + params.n_batch]
            for sequence in range(batch):
                decode(_Batch(llama, [part], sequence))
        llama.llama_synchronize(context)
        yield run
        llama.llama_free(context)

    def close(self) -> None:
        """Nothing of its own to give back: settings of one file share the model."""


class _Batch:
    """A `llama_batch` of new tokens for some sequences, with the arrays that it points to.

    Positions are left to llama.cpp, which counts on from what is in the cache; logits are those of each last token.
    """

    def __init__(self, llama: Any, tokens: Sequence[Sequence[int]], first_sequence: int = 0) -> None:
        count = sum(map(len, tokens))
        owners = [first_sequence + index for index, part in enumerate(tokens) for _ in part]
        wanted = [place == len(part) for part in tokens for place in range(1, len(part) + 1)]
        ids = (llama.llama_seq_id * count)(*owners)
        one = ctypes.POINTER(llama.llama_seq_id)
        size = ctypes.sizeof(llama.llama_seq_id)
        self._pointers = (one * count)(*(ctypes.cast(ctypes.byref(ids, size * i), one) for i in range(count)))
        self._arrays = (
            (llama.llama_token * count)(*(token for part in tokens for token in part)),
            (ctypes.c_int32 * count)(*[1] * count),
            (ctypes.c_int8 * count)(*wanted),
            ids,
        )
        self.struct = llama.llama_batch()
        self.struct.n_tokens = count
        self.struct.token, self.struct.n_seq_id, self.struct.logits = self._arrays[:3]
        self.struct.seq_id = self._pointers


def filling(depth: int, vocabulary: int) -> list[int]:
    """The tokens that stand in the cache before a test."""
    return random.Random(1).choices(range(vocabulary), k=depth)


@contextlib.contextmanager
def gguf_models(files: Sequence[Path]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield llama.cpp's library and each file as it has loaded it."""
    llama = import_llama_cpp()
    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    with contextlib.ExitStack() as stack:
        models = []
        for file in files:
            model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
            if not model:
                sys.exit(f"{file}: llama.cpp cannot load this file")
            stack.callback(llama.llama_model_free, model)
            models.append(model)
        yield llama, models


@contextlib.contextmanager
def llama_contenders(options: argparse.Namespace) -> Iterator[list[LlamaCpp]]:
    """Load each GGUF file once, and yield a contender for each of its settings."""
    contenders = []
    with gguf_models(options.gguf) as (llama, models):
        for gguf, model in zip(options.gguf, models, strict=True):
            for ubatch in options.ubatch_size:
                for flash in options.flash_attn:
                    name = f"{gguf.stem}, fa {flash}" + (f", ub {ubatch}" if len(options.ubatch_size) > 1 else "")
                    contenders.append(LlamaCpp(llama, model, name, options.threads, flash, ubatch))
        yield contenders


def import_llama_cpp() -> Any:
    """Return the module, or end with what to do."""
    try:
        import llama_cpp
    except ImportError:
        sys.exit(
            "llama-cpp-python is not installed; build it for this machine:\n"
            "    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python"
        )
    return llama_cpp


def in_turn(
    contenders: Sequence[Quantkit | LlamaCpp], tests: Sequence[Test], repetitions: int
) -> Iterator[tuple[Test, list[list[float]]]]:
    """Yield each test with the seconds of each contender; a turn more, the first, warms up and is not counted."""
    vocabulary = min(contender.vocabulary for contender in contenders)
    groups = dict.fromkeys((test.batch, test.depth) for test in tests)
    for batch, depth in groups:
        group = [test for test in tests if (test.batch, test.depth) == (batch, depth)]
        room = max(test.calls * test.tokens for test in group)
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(contender.ready(batch, depth, room)) for contender in contenders]
            for test in group:
                steps = test.steps(vocabulary)
                for run in runs:
                    run(steps[:8])
                turns = [[run(steps) for run in runs] for _ in range(repetitions)]
                yield test, [list(seconds) for seconds in zip(*turns, strict=True)]


def row(test: Test, names: Sequence[str], samples: Sequence[Sequence[float]]) -> dict[str, Any]:
    """One test: quantkit, which is the first contender, beside the fastest of the others."""
    medians = [statistics.median(seconds) for seconds in samples]
    best = min(range(1, len(medians)), key=medians.__getitem__)
    return {
        "test": test.name,
        "unit": "ms" if test.in_milliseconds else "t/s",
        "quantkit": test.figure(medians[0]),
        "llama.cpp": test.figure(medians[best]),
        "ratio": medians[best] / medians[0],
        "llama.cpp's best": names[best],
        "all": {name: test.figure(median) for name, median in zip(names, medians, strict=True)},
        "samples_s": {name: list(seconds) for name, seconds in zip(names, samples, strict=True)},
    }


def markdown(cells: Iterable[str]) -> str:
    """A row of the table."""
    return table_line(cells, list(COLUMNS.values()), markdown=True)


def cells(row: dict[str, Any]) -> list[str]:
    """What stands in the row of a test."""
    unit, digits = (" ms", ",.0f") if row["unit"] == "ms" else ("", ",.1f")
    figures = [f"{row[name]:{digits}}{unit}" for name in ("quantkit", "llama.cpp")]
    return [row["test"], *figures, f"{row['ratio']:.2f}", row["llama.cpp's best"]]


def numbers(text: str) -> list[int]:
    """`1,4,16` -> [1, 4, 16]."""
    return [int(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    """Read the command line, in llama-bench's spelling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path, help="a folder that quantkit packed")
    parser.add_argument("gguf", type=Path, nargs="+", help="the same model in llama.cpp's types")
    parser.add_argument("-p", "--n-prompt", type=numbers, default=[512], metavar="N,...")
    parser.add_argument("-n", "--n-gen", type=numbers, default=[128], metavar="N,...")
    parser.add_argument("-d", "--n-depth", type=numbers, default=[0], metavar="N,...")
    parser.add_argument("-b", "--batch", type=numbers, default=[1], metavar="N,...", help="sequences decoded together")
    parser.add_argument("--ttft", type=numbers, default=[], metavar="N,...", help="prompts whose first token is timed")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-fa", "--flash-attn", type=numbers, default=[0, 1], metavar="0,1", help="llama.cpp's settings")
    parser.add_argument("-ub", "--ubatch-size", type=numbers, default=[512], metavar="N,...", help="likewise")
    parser.add_argument("-o", "--output", choices=("md", "jsonl"), default="md")
    return parser.parse_args()


def main() -> None:
    """Take turns, print medians and ratios."""
    options = parse()
    with llama_contenders(options) as theirs, contextlib.closing(Quantkit(options.packed, options.threads)) as ours:
        contenders: list[Quantkit | LlamaCpp] = [ours, *theirs]
        names = [contender.name for contender in contenders]
        if options.output == "md":
            print(markdown(COLUMNS), table_rule(list(COLUMNS.values())), sep="\n")
        for test, samples in in_turn(contenders, tests_of(options), options.repetitions):
            found = row(test, names, samples)
            print(markdown(cells(found)) if options.output == "md" else json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
