"""Lowering: shared quantization, barriers where threads would meet, memory shared by values that never live together."""

from __future__ import annotations

import tiny

from quantkit import models
from quantkit.plan import plan
from quantkit.program import Recorder
from quantkit_kernels.table import SHARED, Opcode


def llama_plan(kind="int4", **overrides):
    program = models.record(tiny.config_of("llama", **overrides))
    kinds = {name: kind if len(spec.shape) == 2 else "f32" for name, spec in program.tensors.items()}
    return plan(program, kinds)


def test_one_quantization_feeds_all_matrices_that_share_an_input():
    steps = llama_plan().steps
    # A layer has four inputs of matrices (q/k/v, o, gate/up, down), and the head one.
    assert sum(step.opcode is Opcode.QUANTIZE for step in steps) == 4 * 2 + 1
    assert not any(step.opcode is Opcode.QUANTIZE for step in llama_plan("f16").steps)


def test_no_barrier_between_matrices_of_one_input():
    steps = llama_plan().steps
    inside = [b for a, b in zip(steps, steps[1:], strict=False) if a.opcode is b.opcode is Opcode.LINEAR]
    assert len(inside) == 2 * (2 + 1)  # k and v after q, up after gate
    assert not any(step.barrier for step in inside)


def test_every_meeting_of_threads_has_a_barrier():
    """Checked the slow way: whatever a step touches was last touched by the same thread, or before a barrier."""
    for kind in ("int4", "f16"):
        steps = llama_plan(kind).steps
        epoch, owner = 0, {}
        for step in steps:
            epoch += step.barrier
            mine = (epoch, None if step.opcode in SHARED else step.wanted)
            for role, buffers in (("read", step.inputs), ("write", (step.output,))):
                for buffer in buffers:
                    place = buffer.slot if buffer.slot >= 0 else id(buffer)
                    for then, (before, how) in list(owner.get(place, {}).items()):
                        if then == "read" and role == "read":
                            continue
                        same_thread = how == mine[1] and how is not None
                        assert before < epoch or same_thread, (step.name, place)
                    owner.setdefault(place, {})[role] = mine


def test_memory_does_not_grow_with_depth():
    assert sum(llama_plan(num_hidden_layers=4).slots) == sum(llama_plan(num_hidden_layers=20).slots)


def test_a_value_is_not_overwritten_while_it_is_needed():
    ops = Recorder()
    h = ops.embed("e", 16, 16)
    x = ops.scale(ops.scale(ops.scale(h, 2.0), 2.0), 2.0)
    ops.linear(ops.select(ops.add(h, x)), "head", 16)
    steps = plan(ops.program(), {"e.weight": "f32", "head.weight": "f32"}).steps
    kept = steps[0].output.slot
    assert all(step.output.slot != kept for step in steps[1:4])
