"""Programs cut into parts: one after the other they compute what the whole does, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import thread_meetings
import tiny
from golden.generate import checkpoint
from memory_source import MemorySource
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.engine.lowering import plan
from quantkit.engine.model import PASS_TOKENS, Model, empty_rows
from quantkit.errors import GenerationError
from quantkit.models.parts import cut
from quantkit.models.program import Program, Value
from quantkit.quantization.encode import quantize

CASES = (
    *("llama", "gemma3n_text", "gemma4_text", "gpt2", "bloom", "deepseek_v3", "mixtral", "gpt_oss", "qwen3_next"),
    *("falcon_h1", "lfm2", "recurrent_gemma", "jamba", "zamba2", "phi"),
)
"""Caches that layers share, rows for each expert, states, biases, learned positions, layers side by side."""
TOKENS = [int(x) for x in np.random.default_rng(4).integers(4, tiny.VOCAB_SIZE, 70)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Program, MemorySource]:
    """A tiny model, its matrices packed to int4."""
    bound = bind(formats.open(checkpoint(tmp_path, request.param)))
    kinds = {"linear": "int4", "expert": "int4", "head": "int8", "embedding": "int8"}
    tensors = {
        name: quantize(bound.weights.tensor(name), kinds.get(spec.role, "f32"))[0]
        for name, spec in bound.program.tensors.items()
    }
    return bound.program, MemorySource(tensors)


def products(program: Program) -> list[int]:
    """Numbers of the operations that multiply by a matrix."""
    return [number for number, operation in enumerate(program.operations) if operation.spec.product]


def run(parts: list[Program], source: MemorySource, tokens: list[int]) -> dict[int, NDArray[np.float32]]:
    """All values that parts leave, by their index."""
    rows: dict[int, NDArray[np.float32]] = {}
    for part in parts:
        model = Model(part, source, context_length=len(tokens), threads=2)
        rows |= {value.index: empty_rows(value, len(tokens)) for value in part.outputs}
        inputs, outputs = ([rows[value.index] for value in values] for values in (part.inputs, part.outputs))
        model.compute(tokens, inputs, outputs)
        model.close()
    return rows


def test_parts_compute_what_the_whole_does(case: tuple[Program, MemorySource]) -> None:
    program, source = case
    parts = cut(program, products(program))
    for part in parts:
        thread_meetings.check(plan(part, {name: tensor.kind for name, tensor in source.tensors.items()}))
    rows = run(parts, source, TOKENS)[program.logits.index]
    expected = Model(program, source, context_length=len(TOKENS), threads=2)(TOKENS)
    assert (rows[:, : program.logits.columns] == expected).all()


def test_parts_take_texts_of_several_passes(tmp_path: Path) -> None:
    bound = bind(formats.open(tiny.checkpoint(tmp_path, "llama")))
    source = MemorySource({name: bound.weights.tensor(name) for name in bound.program.tensors})
    tokens = TOKENS * (PASS_TOKENS // len(TOKENS) + 1)
    rows = run(cut(bound.program, products(bound.program)), source, tokens)[bound.program.logits.index]
    expected = Model(bound.program, source, context_length=len(tokens), threads=1)(tokens)
    assert (rows[:, : bound.program.logits.columns] == expected).all()


def test_without_borders_a_program_stays_whole(case: tuple[Program, MemorySource]) -> None:
    (part,) = cut(case[0], [])
    assert (part.operations, part.inputs, part.outputs) == (case[0].operations, (), case[0].outputs)


def test_what_is_given_must_fit(tmp_path: Path) -> None:
    bound = bind(formats.open(tiny.checkpoint(tmp_path, "llama")))
    source = MemorySource({name: bound.weights.tensor(name) for name in bound.program.tensors})
    first, *_ = cut(bound.program, products(bound.program))
    model = Model(first, source, context_length=8, threads=1)
    outputs = [empty_rows(value, 8) for value in first.outputs]
    with pytest.raises(ValueError, match="are not f32"):
        model.compute(TOKENS[:7], [], outputs)
    with pytest.raises(ValueError, match="shorter"):
        model.compute(TOKENS[:8], [], outputs[:-1])
    with pytest.raises(GenerationError, match="outside the vocabulary"):
        model.compute([tiny.VOCAB_SIZE] * 8, [], outputs)


def test_rows_of_a_value_are_whole_cache_lines() -> None:
    assert empty_rows(Value(0, 17, per_token=2), 3).shape == (6, 32)
