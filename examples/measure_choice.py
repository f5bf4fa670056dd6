"""What generation does between two passes: microseconds from the end of one to the beginning of the next.

    python examples/measure_choice.py PACKED_FOLDER [--vocabulary 151936] [--threads 2] [--tokens 200]

It is the time of all that is not the model: the text of a token, the response, and the inputs of the next pass; also
the choice of a token whose logits were changed before, since passes make the other choices themselves. In the last row
it is of 16 sequences together. Medians of one answer each: the system may put the thread aside. `pass` is how long a
pass takes beside it: caches that it has filled with weights are what makes the rest slow. With `--vocabulary`, the
model's own tokens are repeated, fainter and fainter, until there are so many.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import quantkit
from quantkit.cli.text import table
from quantkit.engine.model import Model, Weights
from quantkit.engine.opening import open_model
from quantkit.engine.workers import WorkerPool
from quantkit.generation.loading import load_tokenizer, model_of
from quantkit.generation.sampling import PassSampler
from quantkit.models import registry
from quantkit.tensor import Tensor

PROMPT = "Write a long story about a lighthouse keeper who finds a letter."
FAINTER = 0.8
"""Logits of tokens that repeat others, as a share of theirs."""
SEQUENCES = 16
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temp": 0.8},
    "top-p 0.95": {"temp": 0.8, "top_p": 0.95},
    "top-k 40, top-p 0.95, min-p 0.05": {"temp": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "greedy, repetition penalty": {"penalty": 1.1},
    "greedy, log-probabilities": {"logprobs": True},
}


class Widened:
    """The weights of a model whose embedding and head have more rows."""

    def __init__(self, weights: Weights, rows: int) -> None:
        self.config = {**weights.config, "vocab_size": rows}
        self._weights, self._rows = weights, rows

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; rows of embedding and head are repeated."""
        tensor = self._weights.tensor(name)
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            return tensor
        rows, columns = tensor.shape
        copies = range(-(-self._rows // rows))
        tiles = len(tensor.data) * self._rows // rows
        data = np.concatenate([tensor.data for _ in copies])[:tiles]
        scales = tensor.row_scales
        if scales is not None:
            scales = np.concatenate([scales * np.float32(FAINTER**copy) for copy in copies])[:tiles]
        return Tensor(tensor.kind, (self._rows, columns), data, scales)


Pass = tuple[int, int]
"""When a pass began and when it ended, in nanoseconds."""


@contextmanager
def timed_passes() -> Iterator[list[Pass]]:
    """Yield a list to which each pass is added."""
    run, passes = WorkerPool.run, list[Pass]()

    def timed(pool: WorkerPool, chunks: int) -> None:
        begin = time.perf_counter_ns()
        run(pool, chunks)
        passes.append((begin, time.perf_counter_ns()))

    WorkerPool.run = timed  # type: ignore[method-assign, assignment]
    try:
        yield passes
    finally:
        WorkerPool.run = run  # type: ignore[method-assign]


def answer(
    model: Model,
    tokenizer: quantkit.Tokenizer,
    tokens: int,
    penalty: float = 1.0,
    logprobs: bool = False,
    **sampling: Any,
) -> None:
    """Generate so many tokens."""
    for response in quantkit.stream_generate(
        model,
        tokenizer,
        PROMPT,
        max_tokens=tokens,
        ignore_eos=True,
        sampler=quantkit.make_sampler(**sampling, seed=1),
        logits_processors=quantkit.make_logits_processors(penalty),
    ):
        if logprobs:
            response.logprobs[response.token]


def many(model: Model, tokens: int) -> None:
    """Let several sequences generate so many tokens each, greedily."""
    choosers = list(filter(None, (PassSampler.of(quantkit.make_sampler()) for _ in range(SEQUENCES))))
    with ExitStack() as stack:
        sequences = [stack.enter_context(model.new_sequence()) for _ in range(SEQUENCES)]
        last = [[number] for number in range(SEQUENCES)]
        for _ in range(tokens):
            for sequence, choose in zip(sequences, choosers, strict=True):
                sequence.choice = choose.expect()
            rows = model.forward(list(zip(sequences, last, strict=True)))
            last = [[choose(row)] for choose, row in zip(choosers, rows, strict=True)]


def measured(generate: Callable[[], None]) -> tuple[str, str]:
    """Median microseconds between passes and in them."""
    with timed_passes() as passes:
        generate()
    del passes[0]  # of the prompt
    between = statistics.median(begin - end for (_, end), (begin, _) in pairwise(passes))
    return f"{between / 1e3:.0f}", f"{statistics.median(end - begin for begin, end in passes) / 1e3:.0f}"


def main() -> None:
    """Measure each way to choose, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--vocabulary", type=int, metavar="N", help="tokens that the model is to have; a multiple of 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()

    tokenizer, source = load_tokenizer(options.packed), open_model(options.packed)
    model = model_of(source, threads=options.threads, context=options.tokens + 100)
    if options.vocabulary:
        weights = Widened(source.select(model.program.tensors), options.vocabulary)
        program = registry.read(weights.config).record()
        model = Model(program, weights, context_length=model.context_length, threads=options.threads)
    cases = {name: partial(answer, model, tokenizer, options.tokens, **case) for name, case in CASES.items()}
    cases[f"greedy, {SEQUENCES} sequences"] = partial(many, model, options.tokens)
    rows = [(name, *measured(case)) for name, case in cases.items()]
    print(table([f"of {model.vocab_size:,} tokens", "between, µs", "pass, µs"], rows))
    model.close()


if __name__ == "__main__":
    main()
