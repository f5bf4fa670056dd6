"""One runner for all architectures: transformers' answers against the float64 reference and against the engine.

The cases are in `golden/generate.py`; a new architecture is a row there. Rows of the golden logits reach past every
window.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
from golden.generate import CASES, HERE, ROWS, checkpoint, token_ids, transformers_logits, transformers_shapes
from golden.generate import shapes as golden_shapes
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.engine.model import Model
from quantkit.generation.loading import load, load_model
from quantkit.models.registry import read
from quantkit.quantization.conversion import convert

TOLERANCE = 1e-4
"""Largest difference of a logit from transformers' float32; logits of the tiny checkpoints are of order one."""

REAL_TOLERANCE = 2e-3
"""The same for a real model, whose logits reach 30."""


@dataclass(frozen=True)
class Subject:
    """A case, ready to be run."""

    name: str
    folder: Path
    prompt: list[int]

    @property
    def golden(self) -> NDArray[np.float32]:
        with np.load(HERE / f"{self.name}.npz") as file:
            logits: NDArray[np.float32] = file["logits"]
        return logits


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return Subject(request.param, folder, token_ids(formats.open(folder).config["vocab_size"]))


@pytest.fixture(scope="module")
def model(subject: Subject) -> Iterator[Model]:
    model = load_model(subject.folder, kv_dtype="f32", threads=2, context=CASES[subject.name].context)
    yield model
    model.close()


def difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def by_token(model: Model, prompt: list[int]) -> NDArray[np.float32]:
    with model.new_sequence() as sequence:
        return np.concatenate([model.forward([(sequence, [token])]) for token in prompt])


def test_every_case_makes_a_difference() -> None:
    answers: dict[str, list[NDArray[np.float32]]] = {}
    for name, case in CASES.items():
        with np.load(HERE / f"{name}.npz") as file:
            answers.setdefault(case.model_type, []).append(file["logits"])
    for family in answers.values():
        for a, b in itertools.combinations(family, 2):
            assert a.shape != b.shape or difference(a, b) > 100 * TOLERANCE


def test_tensors_are_those_of_transformers(subject: Subject) -> None:
    source = formats.open(subject.folder)
    assert {name: source.spec(name).shape for name in source.names} == golden_shapes(subject.name)
    assert source.check(read(source.config).record().tensors) == []


def test_reference_equals_transformers(subject: Subject) -> None:
    bound = bind(formats.open(subject.folder), CASES[subject.name].context)
    answer = reference.logits(bound.program, bound.weights, subject.prompt)
    assert difference(answer[list(ROWS)], subject.golden) <= TOLERANCE


def test_engine_equals_transformers(subject: Subject, model: Model) -> None:
    assert difference(model(subject.prompt)[list(ROWS)], subject.golden) <= TOLERANCE


def test_engine_token_by_token_equals_transformers(subject: Subject, model: Model) -> None:
    assert difference(by_token(model, subject.prompt)[list(ROWS)], subject.golden) <= TOLERANCE


@pytest.mark.parametrize("quantize", ["int4", "mixed"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if name == case.model_type])
def test_packed_it_runs(name: str, quantize: str, tmp_path: Path) -> None:
    convert(checkpoint(tmp_path / "model", name), tmp_path / "packed", quantize)
    model = load_model(tmp_path / "packed", threads=1)
    logits = model(token_ids(model.vocab_size))
    model.close()
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01


@pytest.mark.live
def test_tensors_are_what_transformers_saves(subject: Subject) -> None:
    assert golden_shapes(subject.name) == transformers_shapes(subject.name)


@pytest.mark.live
def test_golden_files_are_what_transformers_answers(subject: Subject) -> None:
    assert difference(transformers_logits(subject.folder, subject.prompt)[list(ROWS)], subject.golden) <= 1e-5


@pytest.mark.live
def test_engine_equals_live_transformers_token_by_token(subject: Subject, model: Model) -> None:
    case = CASES[subject.name]
    expected = transformers_logits(subject.folder, subject.prompt, step=None if case.context or case.clamped else 1)
    assert difference(by_token(model, subject.prompt), expected) <= TOLERANCE


@pytest.mark.live
@pytest.mark.real
def test_engine_equals_transformers_on_a_real_model() -> None:
    folder = Path(os.environ["QUANTKIT_TEST_MODEL"])
    model, tokenizer = load(folder, kv_dtype="f32")
    prose = Path(__file__).with_name("prose.txt").read_text().split("\n\n")
    prompts = [tokenizer.encode(text) for text in prose]
    assert len(prompts) == 3
    for prompt in prompts:
        assert len(prompt) >= 200
        assert difference(model(prompt), transformers_logits(folder, prompt)) <= REAL_TOLERANCE
    model.close()
