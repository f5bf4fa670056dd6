"""What a unit costs in int4 is what the whole model loses by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from golden.generate import checkpoint
from quantkit.engine.model import Model
from quantkit.quantization.allocation.sensitivity import measure
from quantkit.quantization.allocation.units import Unit, units_of
from quantkit.quantization.encode import dequantize, quantize
from quantkit.quantization.plan import Plan, make_plans
from quantkit.quantization.recipe import LEAST, Recipe
from quantkit.tensor import Tensor

CASES = ("llama", "gpt2", "mixtral", "deepseek_v3", "qwen3_next", "jamba", "zamba2", "gemma3n_text")
"""Heads of their own and tied ones, experts, states, weights and caches that layers share."""
WINDOWS = np.random.default_rng(3).integers(4, tiny.VOCAB_SIZE, (2, 24)).tolist()


def planned(folder: Path, name: str) -> tuple[Plan, list[Unit]]:
    (plan,) = make_plans(checkpoint(folder, name), [Recipe("mixed")])
    return plan, units_of(plan.program, [name for name, why in plan.reasons.items() if why == LEAST.reason])


class Rounded:
    """The weights of a source, some of them as int4 holds them."""

    def __init__(self, plan: Plan, names: tuple[str, ...] = ()) -> None:
        self.config, self._source, self._names = plan.source.config, plan.source, names

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        if name not in self._names:
            return tensor
        return Tensor("f32", tensor.shape, np.concatenate(list(dequantize(quantize(tensor, "int4")[0]))))


def packing(plan: Plan) -> Callable[[str], Tensor]:
    return lambda name: quantize(plan.source.tensor(name), "int4")[0]


def log_probabilities(plan: Plan, names: tuple[str, ...] = ()) -> NDArray[np.float64]:
    """Of all predictions of all windows, `[windows, tokens, vocab_size]`, by the whole model."""
    model = Model(plan.program, Rounded(plan, names), context_length=64, threads=1)
    logits: NDArray[np.float64] = np.stack([model(window) for window in WINDOWS]).astype(np.float64)
    model.close()
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


@pytest.mark.parametrize("name", CASES)
def test_costs_are_divergences_of_the_whole_model(name: str, tmp_path: Path) -> None:
    plan, units = planned(tmp_path, name)
    found = dict(measure(plan.program, plan.source, units, packing(plan), WINDOWS, threads=2))
    assert list(found) == units
    reference = log_probabilities(plan)
    for unit in (*units[:4], *units[-3:]):
        others = log_probabilities(plan, unit.names)
        kl = (np.exp(reference) * (reference - others)).sum(axis=-1).mean(axis=1)
        np.testing.assert_allclose(found[unit], kl, rtol=1e-3, atol=1e-7)
        assert min(found[unit]) >= 0


def test_threads_change_nothing(tmp_path: Path) -> None:
    plan, units = planned(tmp_path, "mixtral")
    one, two = (
        list(measure(plan.program, plan.source, units[:6], packing(plan), WINDOWS, threads=threads))
        for threads in (1, 2)
    )
    assert one == two


def test_nothing_is_run_for_no_units(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, "llama")
    assert list(measure(plan.program, plan.source, [], packing(plan), [[10**9]], threads=1)) == []
