"""Memory of calibration: what is said before is what it takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

import tiny
from golden.generate import checkpoint
from quantkit.engine import model
from quantkit.models import registry
from quantkit.quantization.calibration import memory
from quantkit.quantization.calibration.layers import pack_calibrated
from quantkit.quantization.calibration.memory import calibration_memory
from quantkit.quantization.plan import make_plans
from quantkit.quantization.recipe import Recipe

FIXED = 16e6
"""Bytes that the engine and numpy need however small a model is."""


def test_no_more_than_is_said(tmp_path: Path) -> None:
    (plan,) = make_plans(checkpoint(tmp_path, "mixtral"), [Recipe("int4")])
    windows = np.random.default_rng(1).integers(4, tiny.VOCAB_SIZE, (48, 64)).tolist()
    list(pack_calibrated(plan.program, plan.source, plan.specs, windows[:2], threads=1))  # compiles
    tracemalloc.start()
    list(pack_calibrated(plan.program, plan.source, plan.specs, windows, threads=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    said = calibration_memory(plan.program, plan.specs, 48 * 64)
    assert 0.5 * said < peak < said + FIXED


def test_a_model_of_7b_fits_into_24_gb() -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    program = registry.read(tiny.config_of("llama", **sizes, num_key_value_heads=32, vocab_size=32000)).record()
    kinds = {"linear": "int4", "head": "int8", "embedding": "int8"}
    specs = {
        name: type(spec)(name, spec.shape, spec.role, kind=kinds.get(spec.role, "f32"))
        for name, spec in program.tensors.items()
    }
    assert 12e9 < calibration_memory(program, specs, 65536) < 18e9


def test_a_pass_is_that_of_the_engine() -> None:
    assert memory.PASS_TOKENS == model.PASS_TOKENS
