"""Lowering: shared quantization, barriers where threads would meet, memory shared by values that never live
together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import tiny
from quantkit.engine.lowering import Weight, plan
from quantkit.models import registry
from quantkit.models.recorder import Recorder
from quantkit_kernels.interpreter.table import SHARED, Field, Opcode


def tiny_plan(kind="int4", model_type="llama", **overrides):
    program = registry.read(tiny.config_of(model_type, **overrides)).record()
    kinds = {name: kind if len(spec.shape) == 2 else "f32" for name, spec in program.tensors.items()}
    return plan(program, kinds)


def test_one_quantization_feeds_all_matrices_that_share_an_input():
    steps = tiny_plan().steps
    # A layer has four inputs of matrices (q/k/v, o, gate/up, down), and the head one.
    assert sum(step.opcode is Opcode.QUANTIZE for step in steps) == 4 * 2 + 1
    assert not any(step.opcode is Opcode.QUANTIZE for step in tiny_plan("f16").steps)


def test_no_barrier_between_matrices_of_one_input():
    steps = tiny_plan().steps
    inside = [b for a, b in pairwise(steps) if a.opcode is b.opcode is Opcode.LINEAR]
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
def test_every_meeting_of_threads_has_a_barrier(kind, sizes):
    """Checked the slow way, byte by byte: what a thread touches, no other has touched since the last barrier.

    Any thread may take any token of a run, so they change places from one run to the next.
    """
    tokens, threads = 5, 2
    lowered = tiny_plan(kind, **sizes)
    starts = [tokens * sum(lowered.slots[:slot]) for slot in range(len(lowered.slots))]
    size = lowered.arena_bytes(tokens, 0)
    readers, writers = np.zeros((2, threads, size), bool)

    def touched(step, buffer, thread):
        touch = np.zeros(size, bool)
        if buffer.slot >= 0:  # a thread's own memory meets nobody
            gathers = step.opcode is Opcode.SELECT and buffer is not step.output
            whole = step.opcode in SHARED or gathers
            place = (thread + runs) % threads
            mine = range(tokens) if whole else range(tokens * place // threads, tokens * (place + 1) // threads)
            for token in mine:
                begin = starts[buffer.slot] + token * buffer.token_bytes
                touch[begin : begin + buffer.token_bytes] = True
        return touch

    runs, left = 0, 1
    for step in lowered.steps:
        left -= 1
        if not left:
            runs, left = runs + 1, step.run
        if step.barrier:
            readers[:], writers[:] = False, False
        shared = step.opcode in SHARED
        for thread in range(threads):
            others = [other for other in range(threads) if other != thread]
            write = touched(step, step.output, thread)
            read = np.logical_or.reduce([touched(step, buffer, thread) for buffer in step.inputs] or [write & False])
            assert not (write & (readers[others] | writers[others]).any(0)).any() or shared, step.name
            assert not (read & writers[others].any(0)).any(), step.name
            readers[thread] |= read
            writers[thread] |= write & (not shared)
        if shared:  # afterwards any thread may have written any of it
            writers |= touched(step, step.output, 0)


def test_ten_barriers_in_a_layer():
    ops = [step.opcode for step in tiny_plan().steps if step.barrier]
    attention = [Opcode.LINEAR, Opcode.ROPE, Opcode.ATTENTION, Opcode.QUANTIZE, Opcode.LINEAR]
    layer = [*attention, Opcode.ADD, Opcode.LINEAR, Opcode.GATED, Opcode.LINEAR, Opcode.ADD]
    assert ops == [*layer, *layer, Opcode.SELECT, Opcode.LINEAR]


def test_memory_does_not_grow_with_depth():
    assert sum(tiny_plan(num_hidden_layers=4).slots) == sum(tiny_plan(num_hidden_layers=20).slots)


def test_a_value_is_not_overwritten_while_it_is_needed():
    ops = Recorder()
    h = ops.embed("e", 16, 16)
    x = ops.scale(ops.scale(ops.scale(h, 2.0), 2.0), 2.0)
    ops.linear(ops.select(ops.add(h, x)), "head", 16)
    steps = plan(ops.program(), {"e.weight": "f32", "head.weight": "f32"}).steps
    kept = steps[0].output
    assert kept.own >= 0  # one row for each thread is enough: all of its life is in one run
    assert all(step.output.own != kept.own for step in steps[1:4])


def test_a_run_is_token_steps_that_no_barrier_parts():
    steps = tiny_plan().steps
    assert {step.run for step in steps if step.opcode in SHARED} == {1}
    for step, following in pairwise(steps):
        joined = not following.barrier and not {step.opcode, following.opcode} & SHARED
        assert step.run == (following.run + 1 if joined and step.wanted == following.wanted else 1)
    layer = [Opcode.ROPE, Opcode.ADD, Opcode.ADD]
    begins = [step.opcode for step in steps if step.run == 3 and step.barrier]
    assert begins == [*layer, *layer[:2], Opcode.SELECT]


def test_sums_take_the_place_of_what_they_add_to():
    sums = [step for step in tiny_plan().steps if step.opcode is Opcode.ADD]
    assert len({step.output.slot for step in sums}) == 1


def test_waiting_threads_know_the_weights_that_come_next():
    lowered = tiny_plan()
    weights = {step.weight or "": Weight("int4", 1 << 20 | index) for index, step in enumerate(lowered.steps)}
    weights |= {step.weight or "": Weight("f32", 1 << 30) for step in lowered.steps if step.opcode is Opcode.RMS_NORM}
    table = lowered.table(weights, 0, 8, 2, [0] * 2)
    for index, step in enumerate(lowered.steps):
        following = next((row for row in table[index:] if row[Field.OPCODE] == Opcode.LINEAR), None)
        expected = following[Field.WEIGHT] if following is not None else 0
        assert table[index, Field.AHEAD] == expected, step.name
