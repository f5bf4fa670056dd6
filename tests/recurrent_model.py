"""A small model with layers of both kinds: short convolutions, which keep a state, and attention between them."""

from __future__ import annotations

import tiny
from memory_source import MemorySource
from quantkit.engine.model import Model
from quantkit.models.recorder import Recorder
from quantkit.tensor import Tensor

STATE_BYTES = 4 * 48 * (3 + 2)


def recurrent_model(threads: int = 2) -> Model:
    """Return the model, whose words are those of `tiny`."""
    ops = Recorder()
    x = ops.embed("embed", tiny.VOCAB_SIZE, 40)
    x = ops.add(x, ops.short_conv(x, "first", 4, activation="silu"))
    q, k, v = (ops.linear(x, name, 32) for name in "qkv")
    x = ops.add(x, ops.linear(ops.attention(q, ops.store_kv(k, v, head_dim=16), scale=0.25), "o", 40))
    x = ops.add(x, ops.short_conv(x, "second", 3, bias=True))
    ops.linear(ops.select(x), "head", tiny.VOCAB_SIZE)
    program = ops.program()
    tensors = {name: Tensor("f32", spec.shape, tiny.weight(name, spec.shape)) for name, spec in program.tensors.items()}
    return Model(program, MemorySource(tensors), context_length=256, threads=threads)
