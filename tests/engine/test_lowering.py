"""Lowering: shared quantization, barriers where threads would meet, memory shared by values that never live
together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import thread_meetings
import tiny
from quantkit.engine.lowering import Addresses, Plan, Weight, plan
from quantkit.models import registry
from quantkit.models.recorder import Recorder
from quantkit_kernels.interpreter.kernels import Kernels
from quantkit_kernels.interpreter.operations import OPERATIONS


def tiny_plan(kind: str = "int4", model_type: str = "llama", **overrides: Any) -> Plan:
    program = registry.read(tiny.config_of(model_type, **overrides)).record()
    kinds = {name: kind if len(spec.shape) == 2 else "f32" for name, spec in program.tensors.items()}
    return plan(program, kinds)


def test_one_quantization_feeds_all_matrices_that_share_an_input() -> None:
    steps = tiny_plan().steps
    # A layer has four inputs of matrices (q/k/v, o, gate/up, down), and the head one.
    assert sum(step.spec.name == "quantize" for step in steps) == 4 * 2 + 1
    assert not any(step.spec.name == "quantize" for step in tiny_plan("f16").steps)


def test_no_barrier_between_matrices_of_one_input() -> None:
    steps = tiny_plan().steps
    inside = [b for a, b in pairwise(steps) if a.spec.name == b.spec.name == "linear"]
    assert len(inside) == 2 * (2 + 1)  # k and v after q, up after gate
    assert not any(step.barrier for step in inside)


@pytest.mark.parametrize("kind", ["int4", "f16"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"hidden_size": 72},
        {"intermediate_size": 100},
        {"head_dim": 18},
        {"model_type": "qwen3"},
        {"model_type": "gemma3_text"},
    ],
)
def test_every_meeting_of_threads_has_a_barrier(kind: str, sizes: dict[str, Any]) -> None:
    thread_meetings.check(tiny_plan(kind, **sizes))


def test_ten_barriers_in_a_layer() -> None:
    ops = [step.spec.name for step in tiny_plan().steps if step.barrier]
    attention = ["linear", "rope", "attention", "quantize", "linear"]
    layer = [*attention, "add", "linear", "gated", "linear", "add"]
    assert ops == [*layer, *layer, "select", "linear", "block_maxima", "choose"]


def test_memory_does_not_grow_with_depth() -> None:
    assert sum(tiny_plan(num_hidden_layers=4).slots) == sum(tiny_plan(num_hidden_layers=20).slots)


def test_a_value_is_not_overwritten_while_it_is_needed() -> None:
    ops = Recorder()
    h = ops.embed("e", 16, 16)
    x = ops.scale(ops.scale(ops.scale(h, 2.0), 2.0), 2.0)
    ops.linear(ops.select(ops.add(h, x)), "head", 16)
    steps = plan(ops.program(), {"e.weight": "f32", "head.weight": "f32"}).steps
    kept = steps[0].output
    assert kept.local >= 0  # one row for each thread is enough: it lives inside of fused steps alone
    assert all(step.output.local != kept.local for step in steps[1:4])


def test_what_threads_write_together_is_never_a_threads_own() -> None:
    ops = Recorder()
    h = ops.embed("e", 16, 16)
    ops.linear(h, "unread", 16)
    ops.select(h)
    steps = plan(ops.program(), {"e.weight": "f32", "unread.weight": "f32"}).steps
    assert {step.output.local for step in steps if step.spec.shared} == {-1}


def test_token_steps_that_no_barrier_parts_are_fused() -> None:
    steps = tiny_plan().steps
    assert {step.fused for step in steps if step.spec.shared} == {1}
    for step, following in pairwise(steps):
        joined = not following.barrier and not (step.spec.shared or following.spec.shared)
        assert step.fused == (following.fused + 1 if joined and step.wanted == following.wanted else 1)
    layer = ["rope", "add", "add"]
    begins = [step.spec.name for step in steps if step.fused == 3 and step.barrier]
    assert begins == [*layer, *layer[:2], "select"]


def test_sums_take_the_place_of_what_they_add_to() -> None:
    sums = [step for step in tiny_plan().steps if step.spec.name == "add"]
    assert len({step.output.slot for step in sums}) == 1


def test_waiting_threads_know_the_weights_that_come_next() -> None:
    lowered = tiny_plan()
    weights = {
        name: Weight("f32" if step.spec.name == "rms_norm" else "int4", 1 << 20 | index)
        for index, step in enumerate(lowered.steps)
        for name in step.weights
    }
    kernels = Kernels({name: number for number, name in enumerate(OPERATIONS)}, {}, {"int4": 0})
    table = lowered.table(Addresses(kernels, weights, {}, dict.fromkeys(lowered.constants, 0), 0, [0] * 2), 8, 2)
    for index, step in enumerate(lowered.steps):
        following = next((row for row in table[index:] if row["kernel"] == kernels.operations["linear"]), None)
        expected = following["weight"] if following is not None else 0
        assert table[index]["prefetch"] == expected, step.name


def test_states_stand_one_behind_the_other() -> None:
    ops = Recorder()
    x = ops.embed("embed", 4, 40)
    x = ops.short_conv(ops.short_conv(x, "a", 4), "b", 3, columns=(8, 40))
    ops.select(x)
    program = ops.program()
    made = plan(program, dict.fromkeys(program.tensors, "f32"))
    states = [(step.state.units, step.state.floats, step.state_offset) for step in made.steps if step.spec.state]
    assert states == [(3, 3 * 16, 0), (2, 2 * 16, 4 * 3 * 3 * 16)]
    assert made.state_bytes == 4 * (3 * 3 * 16 + 2 * 2 * 16)
    assert tiny_plan().state_bytes == 0
