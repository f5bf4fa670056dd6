"""A dense model, upcycled: where every expert is a copy of its MLP, a mixture of experts answers as the model does."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from memory_source import MemorySource
from quantkit.engine.model import Model
from quantkit.models.registry import read
from quantkit.quantization.encode import quantize
from quantkit.tensor import Tensor

EXPERTS = 8
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Mixtral's names of an expert's projections -> Llama's of an MLP's."""
TOKENS = [(17 * i * i + 5 * i + 3) % tiny.VOCAB_SIZE for i in range(40)]
TOLERANCE = 1e-5
"""Of the largest logit: two halves of a sum are rounded apart."""


def dense_name(name: str) -> str:
    """The tensor of the dense model that an expert's is a copy of."""
    if ".experts." not in name:
        return name
    layer, _, expert = name.partition(".block_sparse_moe.experts.")
    _, projection, kind = expert.split(".")
    return f"{layer}.mlp.{PROJECTIONS[projection]}.{kind}"


def answer(model_type: str, kind: str, **config: int) -> np.ndarray:
    program = read(tiny.config_of(model_type, rms_norm_eps=1e-5, **config)).record()
    tensors = {}
    for name, spec in program.tensors.items():
        values = Tensor("f32", spec.shape, tiny.weight(dense_name(name), spec.shape))
        tensors[name] = quantize(values, kind if spec.role in ("linear", "expert") else "f32")[0]
    model = Model(program, MemorySource(tensors), context_length=64, threads=2, kv_kind="f32")
    try:
        return model(TOKENS)
    finally:
        model.close()


@pytest.mark.parametrize("kind", ["f32", "int8", "int4"])
def test_equal_experts_answer_as_the_dense_model(kind: str) -> None:
    dense = answer("llama", kind)
    sparse = answer("mixtral", kind, num_local_experts=EXPERTS, num_experts_per_tok=2)
    assert np.abs(sparse - dense).max() <= (TOLERANCE if kind == "f32" else 0.02) * np.abs(dense).max()
    one = answer("mixtral", kind, num_local_experts=EXPERTS, num_experts_per_tok=1)
    assert one.tobytes() == dense.tobytes()  # a single expert has weight 1
