"""Texts written at once are those that are written alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantkit
import tiny
from quantkit.errors import GenerationError, OptionError
from quantkit.evaluation.continuations import Prompt, continue_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def prompts(seeds: bool) -> list[Prompt]:
    random = np.random.default_rng(0)
    found = []
    for number in range(11):
        tokens = random.integers(4, 200, random.integers(1, 30)).tolist()
        sampler = quantkit.make_sampler(temp=1.0, seed=number) if seeds else quantkit.make_sampler()
        found.append(Prompt(tokens, int(random.integers(1, 20)), ["e", "\n"] if number % 3 == 0 else [], sampler))
    return found


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_texts_are_those_of_generate(folder: Path, batch: int, sampled: bool) -> None:
    model, tokenizer = quantkit.load(folder, threads=2)
    expected = [
        quantkit.generate(
            model, tokenizer, prompt.tokens, max_tokens=prompt.max_tokens, stop=prompt.stop, sampler=prompt.sampler
        )
        for prompt in prompts(sampled)
    ]
    done: list[int] = []
    assert continue_texts(model, tokenizer, prompts(sampled), batch=batch, progress=done.append) == expected
    assert sum(done) == len(expected)
    assert any(expected)
    assert continue_texts(model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("prompt", "error", "cause"),
    [
        (Prompt([], 1), GenerationError, "is empty"),
        (Prompt([5] * 30, 4), GenerationError, "leaves room for 3 tokens, not 4"),
        (Prompt([5], 0), GenerationError, "leaves room for 32 tokens, not 0"),
        (Prompt([5], 1, [""]), OptionError, "stop"),
    ],
)
def test_what_cannot_be_written_is_refused(folder: Path, prompt: Prompt, error: type[Exception], cause: str) -> None:
    model, tokenizer = quantkit.load(folder, context=32, threads=1)
    with pytest.raises(error, match=cause):
        continue_texts(model, tokenizer, [Prompt([5] * 29, 4), prompt])
