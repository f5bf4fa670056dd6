"""llama-bench's tests and statistics, on a tiny model; the roofline by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from golden.generate import checkpoint as golden_checkpoint
from quantkit import convert
from quantkit.engine.kv_cache import Sequence as Tokens
from quantkit.engine.model import PASS_TOKENS, Model
from quantkit.errors import OptionError
from quantkit.evaluation import benchmark
from quantkit.evaluation.benchmark import Measurement, cases, measure
from quantkit.evaluation.operations import OUTSIDE, WAITING
from quantkit.evaluation.roofline import Ceilings, Costs
from quantkit.generation.loading import load_model
from quantkit_kernels.ceilings import Probe
from quantkit_kernels.interpreter.operations import OPERATIONS, Chunk, Cost, Load, _positions_seen


class NoProbe:
    """Ceilings that take no time to measure."""

    def read_bandwidth(self, repeats: int = 1) -> list[float]:
        return [4e9] * repeats

    def int8_peak(self, repeats: int = 1) -> list[float]:
        return [1e9] * repeats


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("benchmark")
    convert(tiny.checkpoint(folder / "tiny"), folder / "packed")
    with contextlib.closing(load_model(folder / "packed", threads=2)) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("test", "name"),
    [
        (benchmark.Test(512, 0), "pp512"),
        (benchmark.Test(0, 128), "tg128"),
        (benchmark.Test(0, 128, 512), "tg128 @ d512"),
        (benchmark.Test(0, 16, 8, 4), "tg16 b4 @ d8"),
    ],
)
def test_names_are_those_of_llama_bench(test: benchmark.Test, name: str) -> None:
    assert test.name == name


def test_cases_skip_lengths_of_zero() -> None:
    assert cases([512, 0], [128], [0, 64]) == [
        benchmark.Test(512, 0),
        benchmark.Test(0, 128),
        benchmark.Test(512, 0, 64),
        benchmark.Test(0, 128, 64),
    ]


def test_prompts_come_one_at_a_time_and_generation_in_every_batch() -> None:
    assert cases([8], [4], [0], [1, 3]) == [benchmark.Test(8, 0), benchmark.Test(0, 4), benchmark.Test(0, 4, 0, 3)]


def test_what_is_run_is_what_the_test_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[tuple[int, int]]] = []
    forward = model.forward

    def record(batch: Sequence[tuple[Tokens, Sequence[int]]], **options: Any) -> NDArray[np.float32]:
        calls.append([(sequence.length, len(tokens)) for sequence, tokens in batch])
        return forward(batch, **options)

    monkeypatch.setattr(model, "forward", record)
    tests = [benchmark.Test(16, 0, 8), benchmark.Test(0, 2, 8, 2)]
    list(measure(model, tests, NoProbe(), repetitions=2))
    prompt, step = [[(8, 16)]], [[(8, 1), (8, 1)]]
    decode = [*step, [(9, 1), (9, 1)]]
    # The tokens before, a warm-up, two repetitions; then only the second sequence lacks the tokens before.
    assert calls == [[(0, 8)], *prompt * 3, [(0, 8)], *step, *decode * 2]


def test_what_cannot_run_is_refused_before_anything_runs(model: Model) -> None:
    for tests in ([], [benchmark.Test(16, 0), benchmark.Test(model.context_length, 1)]):
        with pytest.raises(OptionError):
            next(measure(model, tests, NoProbe()))


def test_statistics() -> None:
    test, cost = benchmark.Test(0, 10), Cost(weight_bytes=8000, cache_bytes=2000, macs=5000)
    found = Measurement(test, 2, (1_000_000_000, 500_000_000), cost, Ceilings(4e4, 1e4))
    assert found.samples_ts == [10.0, 20.0]
    assert (found.avg_ts, found.avg_ns) == (15.0, 750_000_000)
    assert found.stddev_ts == pytest.approx(np.std([10, 20], ddof=1))
    assert found.stddev_ns == round(np.std([1e9, 5e8], ddof=1))
    assert (found.read_rate, found.mac_rate) == (15_000, 7_500)
    assert found.bound_ts == 20  # half a second of multiply-adds, a quarter of reads
    assert Measurement(test, 1, (5,), cost, Ceilings(1, 1)).stddev_ts == 0


def test_costs_are_those_of_the_weights_and_the_cache(model: Model) -> None:
    costs = Costs(model)
    one = costs.forward([Chunk(1, 0)])
    assert one.weight_bytes == pytest.approx(model.bytes_per_token, rel=0.01)
    shape = model.cache_shape
    deep = costs.forward([Chunk(1, 99)])
    assert deep.cache_bytes - one.cache_bytes == pytest.approx(99 * shape.position_bytes)
    assert costs.forward([Chunk(1, 0)] * 3).weight_bytes == pytest.approx(one.weight_bytes, rel=0.02)  # shared
    assert len(costs.passes([Chunk(2 * PASS_TOKENS + 1, 0)])) == 3


@pytest.mark.parametrize(("count", "depth", "window"), [(1, 0, 9), (7, 0, 3), (5, 10, 12), (4, 20, 3), (3, 2, 100)])
def test_positions_seen_are_counted_one_by_one(count: int, depth: int, window: int) -> None:
    assert _positions_seen(Chunk(count, depth), window) == sum(min(depth + i + 1, window) for i in range(count))


@pytest.mark.parametrize(("count", "depth", "window"), [(1, 0, 9), (7, 0, 3), (5, 10, 12), (4, 20, 3), (9, 5, 6)])
def test_of_chunked_attention_what_a_chunk_holds_counts(count: int, depth: int, window: int) -> None:
    fields = {"kv_heads": 1, "heads_per_kv": 1, "head_dim": 1, "v_head_dim": 1, "window": window, "chunked": True}
    load = Load(count, [Chunk(count, depth)], 1, 0, 1, position_bytes=1, state_bytes=0)
    cost = OPERATIONS["attention"].work(fields, load)
    seen = [range(place // window * window, place + 1) for place in range(depth, depth + count)]
    assert cost.cache_bytes == len({place for places in seen for place in places})
    assert cost.macs == 2 * sum(map(len, seen))


def test_operations_make_up_the_clock_s_time(model: Model) -> None:
    (found,) = measure(model, [benchmark.Test(0, 3)], NoProbe(), repetitions=1, operations=True)
    names = {operation.name: operation for operation in found.operations}
    assert {WAITING, OUTSIDE, "attention", "linear down_proj", "gated + quantize"} <= names.keys()
    assert sum(operation.share for operation in found.operations) == pytest.approx(1)
    total = sum((operation.cost for operation in found.operations), start=Cost())
    assert total.macs == pytest.approx(found.cost.macs / 3)


def test_of_the_experts_those_that_are_chosen_count(tmp_path: Path) -> None:
    convert(golden_checkpoint(tmp_path / "tiny", "qwen3_moe", dtype="BF16"), tmp_path / "packed")  # 3 of 8 experts
    with contextlib.closing(load_model(tmp_path / "packed", threads=1)) as mixture:
        costs = Costs(mixture)
        for step in [step for step in mixture.plan.steps if step.spec.name == "expert_linear"]:
            whole = sum(mixture.tensors[name].nbytes for name in step.weights)
            assert costs.step(step, [Chunk(1, 9)], 1).weight_bytes == pytest.approx(whole * 3 / 8)
            two = costs.step(step, [Chunk(2, 9)], 1)
            assert two.weight_bytes == pytest.approx(whole * (1 - (5 / 8) ** 2))
            assert two.macs == 2 * 3 * step.fields["in_columns"] * step.fields["out_columns"]
        assert costs.forward([Chunk(1, 0)]).weight_bytes == pytest.approx(mixture.bytes_per_token, rel=0.01)
        (found,) = measure(mixture, [benchmark.Test(8, 0)], NoProbe(), repetitions=1, operations=True)
    names = {operation.name for operation in found.operations}
    assert {"expert_linear gate_proj", "expert_linear up_proj", "expert_linear down_proj"} <= names


def test_ceilings_are_measured() -> None:
    probe = Probe(1)
    assert all(rate > 1e8 for rate in probe.read_bandwidth(1) + probe.int8_peak(1))


def test_bandwidth_is_remembered_per_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path))
    assert benchmark.known_bandwidth(2) is None
    benchmark.remember_bandwidth(2, 2e9)
    benchmark.remember_bandwidth(1, 1e9)
    assert [benchmark.known_bandwidth(threads) for threads in (1, 2, 3)] == [1e9, 2e9, None]
    (tmp_path / "bandwidth.json").write_text("[")
    assert benchmark.known_bandwidth(2) is None
