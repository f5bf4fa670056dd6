"""quantkit and llama.cpp side by side: prefill of 512 tokens and generation of 128, in turn, with the same threads.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python    # built for this machine
    python examples/compare_llama_cpp.py PACKED_FOLDER MODEL.gguf [--threads 2] [--repetitions 5]

Both models are loaded in this process, run the same random tokens, and take turns, so that whatever else the machine
does falls on both. Medians and their ratios are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import quantkit

PREFILL, DECODE = 512, 128
Test = Callable[[list[int]], float]
"""Runs some tokens from an empty cache -> seconds."""


@contextlib.contextmanager
def quantkit_tests(folder: Path, threads: int) -> Iterator[tuple[int, Test, Test]]:
    """Yield (vocabulary size, prefill, decode) of a packed folder."""
    model = quantkit.load_model(folder, threads=threads)

    def run(pieces: list[list[int]]) -> float:
        with contextlib.closing(model.new_sequence()) as sequence:
            begin = time.perf_counter()
            for piece in pieces:
                model.forward([(sequence, piece)])
            return time.perf_counter() - begin

    yield model.vocab_size, lambda ids: run([ids]), lambda ids: run([[token] for token in ids])
    model.close()


@contextlib.contextmanager
def llama_tests(gguf: Path, threads: int) -> Iterator[tuple[int, Test, Test]]:
    """Yield (vocabulary size, prefill, decode) of a GGUF file, through llama.cpp's own batch functions."""
    llama = import_llama_cpp()
    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(gguf).encode(), llama.llama_model_default_params())
    if not model:
        sys.exit(f"{gguf}: llama.cpp cannot load this file")
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = 2 * PREFILL
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)

    def run(pieces: list[list[int]]) -> float:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        begin = time.perf_counter()
        for piece in pieces:
            tokens = (llama.llama_token * len(piece))(*piece)
            if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(piece))):
                sys.exit("llama.cpp could not run a batch")
        llama.llama_synchronize(context)
        return time.perf_counter() - begin

    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    yield vocabulary, lambda ids: run([ids]), lambda ids: run([[token] for token in ids])
    llama.llama_free(context)
    llama.llama_model_free(model)


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


def main() -> None:
    """Take turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()

    with (
        llama_tests(options.gguf, options.threads) as (their_vocabulary, *theirs),
        quantkit_tests(options.packed, options.threads) as (our_vocabulary, *ours),
    ):
        vocabulary = min(our_vocabulary, their_vocabulary)
        print(f"{'test':8}{'quantkit':>12}{'llama.cpp':>12}{'ratio':>8}   tokens/s, medians of {options.repetitions}")
        for name, count, our_test, their_test in zip(
            (f"pp{PREFILL}", f"tg{DECODE}"), (PREFILL, DECODE), ours, theirs, strict=True
        ):
            ids = random.Random(0).choices(range(vocabulary), k=count)
            turns = [(our_test(ids), their_test(ids)) for _ in range(options.repetitions + 1)][1:]
            our_speed, their_speed = (count / statistics.median(seconds) for seconds in zip(*turns, strict=True))
            print(f"{name:8}{our_speed:12.1f}{their_speed:12.1f}{our_speed / their_speed:8.2f}")


if __name__ == "__main__":
    main()
