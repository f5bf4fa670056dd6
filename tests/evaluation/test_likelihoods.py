"""Log-likelihoods of continuations: those of reading each text by itself, whatever is read together or once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantkit
import tiny
from bigram import BigramModel
from quantkit.errors import GenerationError
from quantkit.evaluation.likelihoods import ROWS, Continuation, Likelihood, log_likelihoods
from recurrent_model import recurrent_model

VOCAB_SIZE = 30


def bigram(seed: int = 0, context_length: int = 500) -> BigramModel:
    table = np.random.default_rng(seed).normal(size=(VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)
    return BigramModel(table, context_length)


def by_itself(model: BigramModel, continuation: Continuation) -> Likelihood:
    wide = model.table.astype(np.float64)
    logprobs = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    text = [*continuation.context, *continuation.tokens]
    pairs = list(itertools.pairwise(text))[len(text) - 1 - len(continuation.tokens) :]
    greedy = all(logprobs[last].argmax() == token for last, token in pairs)
    return Likelihood(float(sum(logprobs[last, token] for last, token in pairs)), greedy)


def choices(seed: int, questions: int = 9) -> list[Continuation]:
    """Questions with the same long beginning, and several answers each, of any length."""
    random = np.random.default_rng(seed)
    examples = random.integers(0, VOCAB_SIZE, 40).tolist()
    found = []
    for _ in range(questions):
        context = examples + random.integers(0, VOCAB_SIZE, random.integers(1, 9)).tolist()
        for length in random.integers(0, 6, 4):
            found.append(Continuation(context, random.integers(0, VOCAB_SIZE, length).tolist()))
    return found


def check(found: list[Likelihood], expected: list[Likelihood]) -> None:
    assert [each.greedy for each in found] == [each.greedy for each in expected]
    np.testing.assert_allclose([a.log_likelihood for a in found], [b.log_likelihood for b in expected], rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 16, 99])
def test_each_is_that_of_its_text_alone(batch: int) -> None:
    model, asked = bigram(), choices(1)
    done: list[int] = []
    found = log_likelihoods(model, asked, batch=batch, progress=done.append)
    check(found, [by_itself(model, each) for each in asked])
    assert sum(done) == len(asked)
    assert len(model.sequences) <= batch
    assert all(sequence.closed for sequence in model.sequences)


def test_the_likeliest_continuation_is_greedy() -> None:
    model = BigramModel.of({1: 2, 2: 3, 3: 4}, VOCAB_SIZE)
    asked = [Continuation([1], [2, 3, 4]), Continuation([1], [2, 3, 5]), Continuation([1], [])]
    assert [each.greedy for each in log_likelihoods(model, asked)] == [True, False, True]


def test_what_texts_begin_with_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = bigram(), choices(2)
    read = 0
    plain = model.forward

    def forward(batch: Any, **options: Any) -> Any:
        nonlocal read
        read += sum(len(tokens) for _, tokens in batch)
        return plain(batch, **options)

    monkeypatch.setattr(model, "forward", forward)
    log_likelihoods(model, asked, batch=1)
    whole = sum(len(each.context) + len(each.tokens) - 1 for each in asked if each.tokens)
    assert read < whole / 3


def test_long_continuations_are_scored_in_pieces() -> None:
    model = bigram()
    random = np.random.default_rng(3)
    asked = [Continuation([1], random.integers(0, VOCAB_SIZE, length).tolist()) for length in (2 * ROWS + 5, ROWS, 3)]
    check(log_likelihoods(model, asked), [by_itself(model, each) for each in asked])
    assert model.most_rows == ROWS


@pytest.mark.parametrize(("tokens", "readers"), [(1 << 14, 4), (100, 2), (10, 1)])
def test_few_long_texts_are_in_memory(tokens: int, readers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.evaluation.likelihoods.TOKENS", tokens)
    model = bigram()
    log_likelihoods(model, [Continuation([1] * 40, [first]) for first in range(8)], batch=4)
    assert len(model.sequences) == readers


def test_contexts_are_cut_where_the_model_is_full() -> None:
    model = bigram(context_length=8)
    random = np.random.default_rng(4)
    for length in (1, 7, 8):
        asked = Continuation(
            random.integers(0, VOCAB_SIZE, 20).tolist(), random.integers(0, VOCAB_SIZE, length).tolist()
        )
        check(log_likelihoods(model, [asked]), [by_itself(model, asked)])
        assert len(model.sequences[-1].tokens) <= 8


@pytest.mark.parametrize(
    ("asked", "cause"), [(Continuation([], [1]), "follows no token"), (Continuation([1], [2] * 9), "has 9 tokens")]
)
def test_what_cannot_be_scored_is_refused_at_once(asked: Continuation, cause: str) -> None:
    model = bigram(context_length=8)
    with pytest.raises(GenerationError, match=cause):
        log_likelihoods(model, [Continuation([1], [2]), asked])
    assert not model.sequences


def test_logits_that_are_not_finite() -> None:
    model = BigramModel(np.full((VOCAB_SIZE, VOCAB_SIZE), np.nan, np.float32))
    with pytest.raises(GenerationError, match="not finite"):
        log_likelihoods(model, [Continuation([1], [2])])


@pytest.mark.parametrize("recurrent", [False, True])
def test_results_do_not_depend_on_the_batch(recurrent: bool, tmp_path: Path) -> None:
    """To the last bit, by the engine; states of recurrent layers go back to where texts part as well."""
    model = recurrent_model() if recurrent else quantkit.load_model(tiny.checkpoint(tmp_path), threads=2)
    asked = choices(5, questions=4)
    expected = [log_likelihoods(model, [each])[0] for each in asked]
    for batch in (1, 4, 16):
        assert log_likelihoods(model, asked, batch=batch) == expected
