"""How fast a model reads prompts and generates, measured as llama.cpp's `llama-bench` does, beside the roofline.

Token ids are random and logits are not looked at: no tokenizer, no sampling. What a machine can do at best drifts where
others share it, so it is measured again before and after each repetition. `roofline.py` says what a test must read and
multiply, `operations.py` where the time of a pass goes; printing and drawing are the command line's and `plot.py`'s.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantkit import user_cache
from quantkit.engine.machine import cpu_name
from quantkit.errors import OptionError
from quantkit.evaluation.operations import OperationTime, operation_times
from quantkit.evaluation.roofline import Ceilings, Costs
from quantkit_kernels.interpreter.operations import Chunk, Cost

if TYPE_CHECKING:
    from quantkit.engine.kv_cache import Sequence as Tokens
    from quantkit.engine.model import Model

logger = logging.getLogger(__name__)

PROBES = 2
"""Measurements of each ceiling before a repetition, and after the last."""


@dataclass(frozen=True)
class Test:
    """What is timed: `n_prompt` tokens in one piece, or `n_gen` one by one, behind `n_depth` tokens in the cache.

    `n_parallel` sequences are decoded together, each with as many tokens.
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """llama-bench's name: `pp512`, `tg128`, `tg128 @ d512`; and `tg128 b4` for four sequences together."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        name += f" b{self.n_parallel}" if self.n_parallel > 1 else ""
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return (self.n_prompt + self.n_gen) * self.n_parallel

    @property
    def positions(self) -> int:
        """Tokens that stand in the cache of each sequence at the end."""
        return self.n_depth + self.n_prompt + self.n_gen

    @property
    def calls(self) -> list[list[Chunk]]:
        """What each call of `Model.forward` is given."""
        runs = [(self.n_prompt, self.n_depth)] if self.n_prompt else [(1, self.n_depth + i) for i in range(self.n_gen)]
        return [[Chunk(count, depth)] * self.n_parallel for count, depth in runs]

    def cost(self, costs: Costs) -> Cost:
        """What the test must read and multiply."""
        return sum(map(costs.forward, self.calls), start=Cost())


def cases(
    prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int], batches: Sequence[int] = (1,)
) -> list[Test]:
    """The tests that llama-bench makes of its lists `-p`, `-n` and `-d`; a length of 0 is left out.

    Prompts are read one at a time; generation runs with each number of sequences of `batches`.
    """
    return [
        test
        for depth in depths
        for test in (
            [Test(n, 0, depth) for n in prompts if n]
            + [Test(0, n, depth, batch) for batch in batches for n in generated if n]
        )
    ]


@dataclass(frozen=True)
class Measurement:
    """The times of one test.

    Attributes
    ----------
    test : Test
    threads : int
    samples_ns : tuple of int
        Nanoseconds of each repetition, the tokens at depth not included.
    cost : Cost
        What the test must read and multiply.
    ceilings : Ceilings
        What the machine could do meanwhile, with as many threads: medians.
    operations : tuple of OperationTime
        Where the time of a further repetition went; empty if nobody asked.
    """

    test: Test
    threads: int
    samples_ns: tuple[int, ...]
    cost: Cost
    ceilings: Ceilings
    operations: tuple[OperationTime, ...] = ()

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.test.tokens / ns * 1e9 for ns in self.samples_ns]

    @property
    def avg_ts(self) -> float:
        """Mean tokens per second."""
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Standard deviation of the tokens per second; 0 for one repetition."""
        return _deviation(self.samples_ts)

    @property
    def avg_ns(self) -> int:
        """Mean nanoseconds of a repetition."""
        return round(statistics.fmean(self.samples_ns))

    @property
    def stddev_ns(self) -> int:
        """Standard deviation of the nanoseconds; 0 for one repetition."""
        return round(_deviation(self.samples_ns))

    @property
    def read_rate(self) -> float:
        """Bytes of weights, keys and values read per second."""
        return self.cost.nbytes * self.avg_ts / self.test.tokens

    @property
    def mac_rate(self) -> float:
        """Multiply-adds per second."""
        return self.cost.macs * self.avg_ts / self.test.tokens

    @property
    def bound_ts(self) -> float:
        """Tokens per second at the roofline."""
        return self.test.tokens / self.ceilings.seconds(self.cost)


class Probe(Protocol):
    """Measures the machine's ceilings; `quantkit_kernels.ceilings.Probe` does."""

    def read_bandwidth(self, repeats: int = ...) -> list[float]:
        """Bytes per second, several times."""

    def int8_peak(self, repeats: int = ...) -> list[float]:
        """Multiply-adds per second, several times."""


def open_probe(threads: int) -> Probe:
    """Return what measures the ceilings of this machine for as many threads."""
    from quantkit_kernels.ceilings import Probe as MachineProbe

    return MachineProbe(threads)


def measure(
    model: Model,
    tests: Sequence[Test],
    probe: Probe,
    *,
    repetitions: int = 5,
    warmup: bool = True,
    operations: bool = False,
) -> Iterator[Measurement]:
    """Time each test on random tokens and yield its measurement.

    Parameters
    ----------
    model : Model
    tests : sequence of Test
        The tokens before stay from test to test, so growing depths are reached fastest.
    probe : Probe
        Of as many threads as the model has.
    repetitions : int
        Timed runs of each test.
    warmup : bool
        Run each test once more before, untimed; generation for one token alone.
    operations : bool
        Run each test once more after, and say where its time went.

    Raises
    ------
    OptionError
        When there is nothing to measure, or a test does not fit the model's context; before anything runs.
    """
    if not tests:
        raise OptionError("nothing to measure: all lengths are 0")
    for test in tests:
        if test.positions > model.context_length:
            raise OptionError(f"{test.name} does not fit the model's context of {model.context_length} tokens")
    costs = Costs(model)
    random = np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        sequences: list[Tokens] = []
        for test in tests:
            while len(sequences) < test.n_parallel:
                sequences.append(stack.enter_context(contextlib.closing(model.new_sequence())))
            used = sequences[: test.n_parallel]
            _fill(model, used, test.n_depth, random)
            if warmup:
                _time(model, used, replace(test, n_gen=min(test.n_gen, 1)), random)
            yield _measure(model, used, test, costs, probe, repetitions, random, operations)


def _measure(
    model: Model,
    sequences: Sequence[Tokens],
    test: Test,
    costs: Costs,
    probe: Probe,
    repetitions: int,
    random: np.random.Generator,
    operations: bool,
) -> Measurement:
    reads, peaks, samples = [], [], []
    for _ in range(repetitions):
        reads += probe.read_bandwidth(PROBES)
        peaks += probe.int8_peak(PROBES)
        samples.append(_time(model, sequences, test, random))
    ceilings = Ceilings(
        statistics.median(reads + probe.read_bandwidth(PROBES)), statistics.median(peaks + probe.int8_peak(PROBES))
    )
    times: tuple[OperationTime, ...] = ()
    if operations:
        times = operation_times(model, costs, test.calls, lambda: _time(model, sequences, test, random))
    return Measurement(test, model.threads, tuple(samples), test.cost(costs), ceilings, times)


def _fill(model: Model, sequences: Sequence[Tokens], depth: int, random: np.random.Generator) -> None:
    """Leave `depth` random tokens in each sequence; those that are there from earlier tests stay."""
    for sequence in sequences:
        sequence.truncate(min(sequence.length, depth))
        sequence.keep_state(depth)
    missing = [(sequence, depth - sequence.length) for sequence in sequences if sequence.length < depth]
    if missing:
        model.forward([(sequence, random.integers(model.vocab_size, size=n).tolist()) for sequence, n in missing])


def _time(model: Model, sequences: Sequence[Tokens], test: Test, random: np.random.Generator) -> int:
    """Run a test once and roll its sequences back; returns its nanoseconds."""
    batches = [
        [
            (sequence, random.integers(model.vocab_size, size=chunk.count).tolist())
            for sequence, chunk in zip(sequences, chunks, strict=True)
        ]
        for chunks in test.calls
    ]
    start = time.perf_counter_ns()
    for batch in batches:
        model.forward(batch)
    elapsed = time.perf_counter_ns() - start
    for sequence in sequences:
        sequence.truncate(test.n_depth)
    return elapsed


def _deviation(samples: Sequence[float]) -> float:
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def remember_bandwidth(threads: int, rate: float) -> None:
    """Keep the bytes per second that `threads` threads were found to read, for `known_bandwidth`, if there is room."""
    file = _bandwidth_file()
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        temporary.write_text(json.dumps(_known() | {_key(threads): rate}, indent=2) + "\n")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        _say_not_kept(file, error.strerror)


@functools.cache
def _say_not_kept(file: Path, cause: str) -> None:
    logger.warning("the measured bandwidth is not kept in %s: %s", file, cause)


def known_bandwidth(threads: int) -> float | None:
    """What `remember_bandwidth` last kept for this processor and as many threads, if anything."""
    return _known().get(_key(threads))


def _known() -> dict[str, float]:
    try:
        known = json.loads(_bandwidth_file().read_text())
    except (OSError, ValueError):
        return {}
    return {key: rate for key, rate in known.items() if isinstance(rate, float)} if isinstance(known, dict) else {}


def _key(threads: int) -> str:
    return f"{cpu_name()}, {threads} threads"


def _bandwidth_file() -> Path:
    return user_cache.root() / "bandwidth.json"
