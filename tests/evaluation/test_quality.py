"""Perplexity and divergence against softmaxes written out token by token."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from bigram import BigramModel
from quantkit.errors import GenerationError, OptionError
from quantkit.evaluation.estimates import Divergence, Estimate
from quantkit.evaluation.quality import evaluations, perplexity
from quantkit.evaluation.scores import BLOCK_TOKENS, Pair, score

VOCAB_SIZE = 40
TEXT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 1_050).tolist()


def random_model(seed: int, *, context_length: int = 512) -> BigramModel:
    table = np.random.default_rng(seed).normal(size=(VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)
    return BigramModel(table, context_length)


def probabilities(model: BigramModel, token: int) -> list[float]:
    weights = [math.exp(logit) for logit in model.table[token].tolist()]
    return [weight / sum(weights) for weight in weights]


def scored(context: int, windows: int, bos: int | None = None) -> list[tuple[int, int]]:
    """(last token read, token to predict) of every scored prediction."""
    pairs = []
    for window in range(windows):
        tokens = TEXT[window * context : (window + 1) * context]
        tokens[0] = tokens[0] if bos is None else bos
        pairs += [(tokens[i], tokens[i + 1]) for i in range(context // 2, context - 1)]
    return pairs


def by_sums(values: list[float]) -> tuple[float, float]:
    """Mean and error from sums of values and squares, as llama-perplexity keeps them."""
    count, total, squares = len(values), sum(values), sum(value * value for value in values)
    mean = total / count
    return mean, math.sqrt((squares / count - mean * mean) / (count - 1))


def approximately(value: float, error: float) -> Any:
    return pytest.approx((value, error), rel=1e-5)


def both(estimate: Estimate) -> tuple[float, float]:
    return estimate.value, estimate.error


@pytest.mark.parametrize(
    ("context", "chunks", "windows"), [(512, None, 2), (33, 3, 3), (64, -1, 16), (64, 99, 16), (8, 1, 1)]
)
def test_perplexity_of_second_halves(context: int, chunks: int | None, windows: int) -> None:
    model = random_model(1)
    losses = [-math.log(probabilities(model, last)[target]) for last, target in scored(context, windows)]
    mean, error = by_sums(losses)
    result = perplexity(model, TEXT, context, chunks)
    assert both(result.perplexity) == approximately(math.exp(mean), math.exp(mean) * error)
    assert (result.windows, result.context, result.tokens) == (windows, context, windows * (context - context // 2 - 1))
    assert result.divergence is None


def expected_divergence(model: BigramModel, reference: BigramModel, context: int, windows: int) -> Divergence:
    divergences, same, losses, reference_losses = [], [], [], []
    for last, target in scored(context, windows):
        p, q = probabilities(reference, last), probabilities(model, last)
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        same.append(float(p.index(max(p)) == q.index(max(q))))
        losses.append(-math.log(q[target]))
        reference_losses.append(-math.log(p[target]))
    return Divergence.of(*map(np.array, (losses, reference_losses, divergences, same)))


def check(found: Divergence | None, expected: Divergence) -> None:
    assert found is not None
    for field in fields(Divergence):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        for a, b in zip(*map(numbers, (value, wanted)), strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-7), field.name


def numbers(value: Any) -> list[float]:
    """The floats that a figure consists of."""
    if isinstance(value, dict):
        return [number for figure in value.values() for number in numbers(figure)]
    return list(both(value)) if isinstance(value, Estimate) else [value]


def test_divergence_from_a_reference() -> None:
    model, reference = random_model(1), random_model(2)
    result = perplexity(model, TEXT, 64, 5, reference=reference)
    check(result.divergence, expected_divergence(model, reference, 64, 5))
    assert result.perplexity == perplexity(model, TEXT, 64, 5).perplexity


def test_several_models_beside_one_reference() -> None:
    reference, *models = (random_model(seed) for seed in range(4))
    found = evaluations(score([reference, *models], [Pair(0, place) for place in (1, 2, 3)], TEXT, 64, 5))
    assert len(reference.sequences) == 5  # each window is read once
    assert found == [perplexity(model, TEXT, 64, 5, reference=reference) for model in models]
    assert evaluations(score(models, [], TEXT, 64, 5)) == [perplexity(model, TEXT, 64, 5) for model in models]


def test_a_model_does_not_diverge_from_itself() -> None:
    result = perplexity(random_model(1), TEXT, 64, 2, reference=random_model(1)).divergence
    assert result is not None
    assert (result.mean_kl.value, result.kl_max, result.same_top.value, result.perplexity_ratio.value) == (0, 0, 1, 1)


def test_uniform_predictions_have_the_vocabulary_as_perplexity() -> None:
    uniform = BigramModel(np.zeros((VOCAB_SIZE, VOCAB_SIZE), np.float32), 512)
    assert both(perplexity(uniform, TEXT).perplexity) == approximately(VOCAB_SIZE, 0)


def test_bos_replaces_the_first_token_of_each_window() -> None:
    model = random_model(1)
    perplexity(model, TEXT, 64, 2, bos_token_id=7)
    read = [sequence.tokens for sequence in model.sequences]
    assert read == [[7, *TEXT[1:63]], [7, *TEXT[65:127]]]  # the last token of a window is predicted, not read
    plain = random_model(1)
    perplexity(plain, TEXT, 64, 2)
    assert plain.sequences[0].tokens == TEXT[:63]


def test_memory_is_bounded_and_sequences_are_closed() -> None:
    model, reference = random_model(1), random_model(2)
    perplexity(model, TEXT, 512, reference=reference)
    for used in (model, reference):
        assert used.most_rows == BLOCK_TOKENS
        assert [sequence.closed for sequence in used.sequences] == [True, True]


def test_progress_tells_the_perplexity_so_far() -> None:
    steps: list[tuple[int, int, float]] = []
    result = perplexity(random_model(1), TEXT, 64, 3, progress=lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0][2] == pytest.approx(perplexity(random_model(1), TEXT, 64, 1).perplexity.value)
    assert steps[-1][2] == pytest.approx(result.perplexity.value)


def test_text_shorter_than_a_window() -> None:
    with pytest.raises(GenerationError, match="has 63 tokens; a window of 64"):
        perplexity(random_model(1), TEXT[:63], 64)


@pytest.mark.parametrize(("context", "chunks"), [(7, None), (513, None), (64, 0), (64, -2)])
def test_bad_options(context: int, chunks: int | None) -> None:
    with pytest.raises(OptionError, match="context is" if chunks is None else "chunks is"):
        perplexity(random_model(1), TEXT, context, chunks)


def test_context_of_the_reference_counts() -> None:
    with pytest.raises(OptionError, match="8 to 32"):
        perplexity(random_model(1), TEXT, 64, reference=random_model(2, context_length=32))


def test_other_vocabulary_cannot_be_compared() -> None:
    other = BigramModel(np.zeros((VOCAB_SIZE, 41), np.float32), 512)
    with pytest.raises(OptionError, match="vocabulary of 40 tokens and its reference one of 41"):
        perplexity(random_model(1), TEXT, 64, reference=other)


def test_broken_logits_are_reported() -> None:
    broken = BigramModel(np.full((VOCAB_SIZE, VOCAB_SIZE), np.nan, np.float32), 512)
    with pytest.raises(GenerationError, match="not finite"):
        perplexity(broken, TEXT, 64)
