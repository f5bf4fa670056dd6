"""llama-bench's tests and statistics, on a model that only counts what it is asked to do."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from quantkit import benchmark
from quantkit.benchmark import Measurement, Test, cases, measure
from quantkit.errors import OptionError

Test.__test__ = False  # a class of the library, not one of pytest's


class CountingModel:
    """Records the lengths of the token runs that each of its sequences was given."""

    vocab_size = 100
    context_length = 64
    bytes_per_token = 1000

    def __init__(self) -> None:
        self.sequences: list[list[int]] = []
        self.closed = 0

    def new_sequence(self) -> CountingModel:
        self.sequences.append([])
        return self

    def close(self) -> None:
        self.closed += 1

    def forward(self, batch: list[tuple[CountingModel, list[int]]]) -> None:
        ((_, tokens),) = batch
        assert all(0 <= token < self.vocab_size for token in tokens)
        self.sequences[-1].append(len(tokens))


@pytest.mark.parametrize(
    ("test", "name"),
    [(Test(512, 0), "pp512"), (Test(0, 128), "tg128"), (Test(0, 128, 512), "tg128 @ d512")],
)
def test_names_are_those_of_llama_bench(test: Test, name: str) -> None:
    assert test.name == name


def test_cases_skip_lengths_of_zero() -> None:
    assert cases([512, 0], [128], [0, 64]) == [Test(512, 0), Test(0, 128), Test(512, 0, 64), Test(0, 128, 64)]


def test_each_repetition_has_its_own_sequence_and_depth() -> None:
    model = CountingModel()
    results = list(measure(model, [Test(16, 0, 8), Test(0, 3, 8)], repetitions=2))
    assert model.sequences == [[16], [8, 16], [8, 16], [1], [8, 1, 1, 1], [8, 1, 1, 1]]
    assert model.closed == 6
    assert [len(result.samples_ns) for result in results] == [2, 2]


@pytest.mark.parametrize("tests", [[], [Test(60, 0, 5)]])
def test_what_cannot_run_is_refused_before_anything_runs(tests: list[Test]) -> None:
    model = CountingModel()
    with pytest.raises(OptionError):
        list(measure(model, tests))
    assert model.sequences == []


def test_statistics() -> None:
    found = Measurement(Test(0, 10), (1_000_000_000, 500_000_000), bytes_per_token=1000)
    assert found.samples_ts == [10.0, 20.0]
    assert (found.avg_ts, found.avg_ns) == (15.0, 750_000_000)
    assert found.stddev_ts == pytest.approx(np.std([10, 20], ddof=1))
    assert found.stddev_ns == round(np.std([1e9, 5e8], ddof=1))
    assert found.read_rate == 15_000
    assert Measurement(Test(10, 0), (5,), 1000).stddev_ts == 0
    assert Measurement(Test(10, 0), (5,), 1000).read_rate is None


def test_bandwidth_is_remembered_per_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path))
    reader = types.SimpleNamespace(read_bandwidth=lambda threads: 1e9 * threads)
    monkeypatch.setitem(sys.modules, "quantkit_kernels.bandwidth", reader)
    assert benchmark.known_bandwidth(2) is None
    assert benchmark.measure_bandwidth(2) == 2e9
    assert benchmark.measure_bandwidth(1) == 1e9
    assert (benchmark.known_bandwidth(1), benchmark.known_bandwidth(2), benchmark.known_bandwidth(3)) == (
        1e9,
        2e9,
        None,
    )
    (tmp_path / "bandwidth.json").write_text("[")
    assert benchmark.known_bandwidth(2) is None
