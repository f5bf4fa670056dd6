"""Samplers and penalties against slow, obvious versions of their definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quantkit
import tiny
from quantkit.errors import GenerationError, OptionError
from quantkit.generation.sampling import PassSampler, log_softmax, make_logits_processors, make_sampler

# Multiples of 1/64: differences are exact in float32, so equal means equal.
logit_lists = st.lists(st.integers(-1280, 1280).map(lambda number: number / 64), min_size=1, max_size=40)


def array(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def kept_by_definition(logits: NDArray[np.float32], top_k: int, top_p: float, min_p: float) -> list[int]:
    """Tokens that the filters leave, by walking down the ranking."""
    ranking = sorted(range(logits.size), key=lambda token: (-logits[token], token))[: top_k or None]
    weights = [math.exp(logits[token] - logits.max()) for token in ranking]
    kept, reached = [], 0.0
    for token, weight in zip(ranking, weights, strict=True):
        if reached >= top_p * sum(weights) and top_p < 1:
            break
        reached += weight
        if weight >= min_p:
            kept.append(token)
    return kept


def drawn(sampler: Callable[[NDArray[np.float32]], int], logits: NDArray[np.float32], times: int) -> Counter[int]:
    return Counter(sampler(logits) for _ in range(times))


@settings(deadline=None)
@given(values=logit_lists)
def test_greedy_takes_the_first_of_the_greatest(values: list[float]) -> None:
    assert make_sampler()(array(*values)) == values.index(max(values))


@settings(deadline=None)
@given(
    values=logit_lists,
    top_k=st.integers(0, 50),
    top_p=st.sampled_from([1.0, 0.0501, 0.4999, 0.8999, 0.99]),
    min_p=st.sampled_from([0.0, 0.0501, 0.3001, 1.0]),
)
def test_only_tokens_that_the_filters_leave(values: list[float], top_k: int, top_p: float, min_p: float) -> None:
    logits = array(*values)
    # Hot enough that every token that is left comes up.
    sampler = make_sampler(temp=1000.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    expected = kept_by_definition(logits, top_k, top_p, min_p)
    assert set(drawn(sampler, logits, 20 * len(expected) + 20)) <= set(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 3}, {1, 3, 2}),  # 2 and 4 are equal: the lower id stays
        ({"top_p": 0.6}, {1}),
        ({"top_p": 0.65}, {1, 3}),
        ({"min_p": 0.36}, {1, 3}),
        ({"min_p": 0.37}, {1}),
        ({"top_k": 4, "top_p": 0.9}, {1, 3, 2}),  # .653 .240 .054 .054: top-p counts what top-k leaves
        ({}, {0, 1, 2, 3, 4}),
    ],
)
def test_filters_by_hand(options: dict[str, Any], expected: set[int]) -> None:
    logits = array(-3.0, 2.0, -0.5, 1.0, -0.5)  # probabilities .0044 .6499 .0533 .2391 .0533
    assert set(drawn(make_sampler(temp=100.0, seed=1, **options), logits, 200)) == expected


@pytest.mark.parametrize("temp", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [5, 700])
def test_frequencies_follow_the_tempered_probabilities(temp: float, size: int) -> None:
    logits = np.random.default_rng(2).normal(size=size).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) / temp)
    expected = weights / weights.sum()
    count = 20_000
    found = drawn(make_sampler(temp=temp, seed=3), logits, count)
    frequencies = np.array([found[token] for token in range(size)]) / count
    # Five standard deviations of a binomial share.
    assert np.all(np.abs(frequencies - expected) <= 5 * np.sqrt(expected / count) + 1 / count)


def test_top_p_finds_its_nucleus_in_a_large_flat_vocabulary() -> None:
    logits = np.zeros(20_000, np.float32)
    logits[7] = 9.5  # 0.4 of all probability; the rest lies below the first floor
    tokens = drawn(make_sampler(temp=1.0, top_p=0.5, seed=0), logits, 300)
    assert tokens[7] > 200
    assert len(tokens) > 20
    assert max(tokens) < 4_000  # the likeliest that reach one half, lowest ids first


def test_same_seed_same_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)

    def tokens(seed: int | None) -> list[int]:
        sampler = make_sampler(temp=1.0, seed=seed)
        return [sampler(logits) for _ in range(20)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_draws_are_the_numbers_of_a_seed_one_after_the_other() -> None:
    sampler, logits = make_sampler(temp=1.0, seed=3), array(0.0, 0.0)
    assert [sampler(logits) for _ in range(1000)] == (np.random.default_rng(3).random(1000) >= 0.5).tolist()


def test_banned_tokens_never_come_up() -> None:
    logits = array(-math.inf, 0.0, -math.inf, 0.0, -math.inf)
    assert set(drawn(make_sampler(temp=5.0, seed=0), logits, 100)) == {1, 3}


@pytest.mark.parametrize(
    "sampler", [make_sampler(), make_sampler(temp=1.0), make_sampler(temp=1.0, top_k=2, top_p=0.5)]
)
@pytest.mark.parametrize("values", [(0.0, math.nan, 1.0), (math.inf, 0.0, 1.0), (-math.inf, -math.inf, -math.inf)])
def test_logits_that_are_not_finite(sampler: Callable[..., int], values: tuple[float, ...]) -> None:
    with pytest.raises(GenerationError, match="greatest logit is"):
        sampler(array(*values))


@pytest.mark.parametrize("options", [{}, {"temp": 1.0}, {"temp": 1.0, "top_k": 3}, {"temp": 1.0, "top_p": 0.9}])
def test_logits_of_any_kind_of_array(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(5).normal(size=300).astype(np.float32)
    frozen, doubled = logits.copy(), np.repeat(logits, 2)
    frozen.flags.writeable = False
    expected = [sample(logits) for sample in [make_sampler(seed=4, **options)] for _ in range(20)]
    arrays: list[Any] = [frozen, logits.astype(np.float64), doubled[::2]]
    for same in arrays:
        sampler = make_sampler(seed=4, **options)
        assert [sampler(same) for _ in range(20)] == expected


def test_a_sampler_may_serve_many_threads() -> None:
    rows = [np.random.default_rng(seed).normal(size=5000).astype(np.float32) for seed in range(8)]
    sampler = make_sampler(temp=1.0, top_k=1)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(sampler, rows * 50))
    assert found == [int(row.argmax()) for row in rows] * 50


def test_samplers_leave_the_logits_alone() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    before = logits.copy()
    make_sampler(temp=0.5, top_k=10, top_p=0.9, min_p=0.1)(logits)
    make_logits_processors(1.5, 1.0, 1.0)[0]([1, 2, 3], logits)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temp": value} for value in (-0.1, math.nan, math.inf, "1", True, 10**400)),
        *({"top_p": value} for value in (0.0, -1.0, 1.1, math.nan)),
        *({"min_p": value} for value in (-0.1, 1.1)),
        *({"top_k": value} for value in (-1, 1.5, "3", True)),
        *({"seed": value} for value in (-1, 0.5, True, "1")),
    ],
)
def test_bad_sampler_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(wrong))} is "):
        make_sampler(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"repetition_penalty": value} for value in (0.0, -1.0, math.inf)),
        {"presence_penalty": math.nan},
        {"frequency_penalty": "1"},
        *({"last_n": value} for value in (-2, 1.5)),
    ],
)
def test_bad_penalties_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(wrong))} is "):
        make_logits_processors(**wrong)


def test_penalties_by_hand() -> None:
    (penalize,) = make_logits_processors(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    # Token 0 twice, 1 once, 3 never; positive logits are divided, negative ones multiplied.
    penalized = penalize([0, 1, 0], array(3.0, -1.0, 0.0, 4.0))
    assert penalized.tolist() == [1.5 - 0.5 - 0.5, -2.0 - 0.5 - 0.25, 0.0, 4.0]
    assert penalized.dtype == np.float32


def test_penalties_look_back_so_far() -> None:
    logits = array(1.0, 1.0, 1.0)
    for last_n, expected in [(2, [1.0, 0.0, 0.0]), (1, [1.0, 1.0, 0.0]), (-1, [0.0, 0.0, 0.0]), (9, [0.0, 0.0, 0.0])]:
        (penalize,) = make_logits_processors(presence_penalty=1.0, last_n=last_n)
        assert penalize([0, 1, 2], logits).tolist() == expected


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 19), min_size=1, max_size=30),
    last_n=st.integers(-1, 40),
    penalties=st.tuples(st.sampled_from([0.5, 1.3]), st.sampled_from([0.0, 0.5]), st.sampled_from([-0.25, 0.75])),
    few=st.sampled_from([0, 4096]),
)
def test_penalties_by_definition(tokens: list[int], last_n: int, penalties: tuple[float, ...], few: int) -> None:
    repetition, presence, frequency = penalties
    logits = np.random.default_rng(4).normal(size=20).astype(np.float32)
    expected = logits.astype(np.float64)
    for token, count in Counter(tokens if last_n < 0 else tokens[len(tokens) - min(last_n, len(tokens)) :]).items():
        expected[token] *= 1 / repetition if expected[token] > 0 else repetition
        expected[token] -= presence + count * frequency
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.generation.sampling._FEW_TOKENS", few)
        for process in make_logits_processors(repetition, presence, frequency, last_n):
            logits = process(tokens, logits)
    assert np.allclose(logits, expected, atol=1e-6)


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 12), st.lists(st.integers(0, 19), max_size=8)),
        min_size=1,
        max_size=12,
    ),
    last_n=st.sampled_from([-1, 5]),
)
def test_penalties_follow_a_text_that_grows_or_is_another(steps: list[tuple[int, list[int]]], last_n: int) -> None:
    """A step cuts so many tokens off the end, mostly none, and adds others."""
    logits = np.random.default_rng(6).normal(size=20).astype(np.float32)
    (penalize,) = make_logits_processors(1.3, 0.5, 0.25, last_n)
    tokens: list[int] = [3]
    for cut, more in steps:
        tokens = tokens[: max(1, len(tokens) - max(0, cut - 8))] + more
        (fresh,) = make_logits_processors(1.3, 0.5, 0.25, last_n)
        assert penalize(tokens, logits).tobytes() == fresh(tokens, logits).tobytes()


def test_penalties_of_many_new_tokens() -> None:
    (penalize,) = make_logits_processors(frequency_penalty=1.0)
    logits = np.zeros(2000, np.float32)
    for count in (1, 2, 300, 900, 2000):
        expected = [-1.0] * count + [0.0] * (2000 - count)
        assert penalize(list(range(count)), logits).tolist() == expected
        assert penalize(tuple(range(count)), logits).tolist() == expected
        assert penalize(np.arange(count), logits).tolist() == expected  # type: ignore[arg-type]


def test_penalties_look_at_the_whole_text_unless_told() -> None:
    (penalize,) = make_logits_processors(presence_penalty=1.0)
    assert penalize([0, *[1] * 10_000], array(1.0, 1.0, 1.0)).tolist() == [0.0, 0.0, 1.0]


def test_penalties_that_are_off_cost_nothing() -> None:
    assert make_logits_processors() == []
    assert make_logits_processors(repetition_penalty=1.3, last_n=0) == []


@settings(deadline=None)
@given(values=logit_lists)
def test_log_softmax(values: list[float]) -> None:
    logits = array(*values)
    exact = logits.astype(np.float64) - math.log(np.exp(logits.astype(np.float64)).sum())
    assert np.allclose(log_softmax(logits), exact, rtol=1e-6, atol=1e-6)
    assert log_softmax(logits).dtype == np.float32


@pytest.mark.parametrize("options", [{}, {"temp": 0.9}, {"temp": 0.8, "top_p": 0.9, "top_k": 20}])
@pytest.mark.parametrize("speculate", [0, 4])
def test_passes_choose_what_the_sampler_would_have(tmp_path: Path, options: dict[str, Any], speculate: int) -> None:
    model, tokenizer = quantkit.load(tiny.checkpoint(tmp_path), threads=2)
    inside, outside = make_sampler(**options, seed=5), make_sampler(**options, seed=5)
    samplers: list[Callable[[NDArray[np.float32]], int]] = [inside, lambda logits: outside(logits)]
    texts = [
        [
            response.token
            for response in quantkit.stream_generate(
                model, tokenizer, "abab", max_tokens=40, ignore_eos=True, sampler=sampler, speculate=speculate
            )
        ]
        for sampler in samplers
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert inside(logits) == outside(logits)  # both have drawn as many numbers


def test_a_sampler_for_passes_chooses_itself_where_the_pass_did_not() -> None:
    sampler = make_sampler(temp=1.0, seed=3)
    for_pass = PassSampler.of(make_sampler(temp=1.0, seed=3))
    assert for_pass is not None
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for _ in range(5):
        for_pass.expect()
        assert for_pass(logits) == sampler(logits)
    for_pass.chooser.token[0] = 7
    assert for_pass(logits) == 7
    for_pass.expect()
    with pytest.raises(GenerationError, match="greatest logit is nan"):
        for_pass(array(0.0, math.nan))
    assert PassSampler.of(lambda logits: 0) is None
