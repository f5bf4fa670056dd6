"""How fast a model reads prompts and generates, measured as llama.cpp's `llama-bench` does, beside the roofline.

Generating a token reads every weight once, so each decode speed comes with the bytes of weights read per second, to be
put beside what plain reads reach with as many threads. Token ids are random and logits are not looked at: no tokenizer,
no sampling. Printing is the command line's.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import OptionError
from quantkit.machine import cpu_name
from quantkit_kernels.cache import cache_root

if TYPE_CHECKING:
    from quantkit.engine import Model


@dataclass(frozen=True)
class Test:
    """What is timed: `n_prompt` tokens in one piece, or `n_gen` one by one, behind `n_depth` tokens in the cache."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name: `pp512`, `tg128`, `tg128 @ d512`."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name


def cases(prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int]) -> list[Test]:
    """The tests that llama-bench makes of its lists `-p`, `-n` and `-d`; a length of 0 is left out."""
    return [
        test
        for depth in depths
        for test in ([Test(n, 0, depth) for n in prompts if n] + [Test(0, n, depth) for n in generated if n])
    ]


@dataclass(frozen=True)
class Measurement:
    """The times of one test.

    Attributes
    ----------
    test : Test
    samples_ns : tuple of int
        Nanoseconds of each repetition, the tokens at depth not included.
    bytes_per_token : int
        Weight bytes that decoding a token reads.
    """

    test: Test
    samples_ns: tuple[int, ...]
    bytes_per_token: int

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [(self.test.n_prompt + self.test.n_gen) / ns * 1e9 for ns in self.samples_ns]

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
    def read_rate(self) -> float | None:
        """Bytes of weights read per second; None for prompts, whose tokens share each read."""
        return self.avg_ts * self.bytes_per_token if self.test.n_gen else None


def measure(model: Model, tests: Sequence[Test], repetitions: int = 5) -> Iterator[Measurement]:
    """Time each test on random tokens, after an untimed warm-up, and yield its measurement.

    Raises
    ------
    OptionError
        When there is nothing to measure, or a test does not fit the model's context; before anything runs.
    """
    if not tests:
        raise OptionError("nothing to measure: all lengths are 0")
    for test in tests:
        if test.n_prompt + test.n_gen + test.n_depth > model.context_length:
            raise OptionError(f"{test.name} does not fit the model's context of {model.context_length} tokens")
    random = np.random.default_rng(0)
    for test in tests:
        _time(model, Test(test.n_prompt, min(test.n_gen, 1)), random)
        samples = tuple(_time(model, test, random) for _ in range(repetitions))
        yield Measurement(test, samples, model.bytes_per_token)


def _time(model: Model, test: Test, random: np.random.Generator) -> int:
    """Run one repetition of a test; returns its nanoseconds."""
    before, prompt, *generated = (
        random.integers(model.vocab_size, size=size).tolist()
        for size in (test.n_depth, test.n_prompt, *([1] * test.n_gen))
    )
    with contextlib.closing(model.new_sequence()) as sequence:
        if before:
            model.forward([(sequence, before)])
        start = time.perf_counter_ns()
        for tokens in filter(None, [prompt, *generated]):
            model.forward([(sequence, tokens)])
        return time.perf_counter_ns() - start


def _deviation(samples: Sequence[float]) -> float:
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def measure_bandwidth(threads: int) -> float:
    """Measure how many bytes per second `threads` threads read from memory, and remember it for `known_bandwidth`."""
    from quantkit_kernels.bandwidth import read_bandwidth

    rate = float(read_bandwidth(threads))
    file = _bandwidth_file()
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(_known() | {_key(threads): rate}, indent=2) + "\n")
    temporary.replace(file)
    return rate


def known_bandwidth(threads: int) -> float | None:
    """What `measure_bandwidth` last found on this processor with as many threads, if anything."""
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
    return cache_root() / "bandwidth.json"
