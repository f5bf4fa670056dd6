"""Drafts: where they come from, when they are worth it, what they cost at worst, and that they change no text."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from bigram import BigramModel
from quantkit.errors import OptionError
from quantkit.generation.sampling import make_logits_processors, make_sampler
from quantkit.generation.speculation import LOSS_ALLOWED, NGRAM_SIZES, NgramIndex, PassTimes, Speculation
from quantkit.generation.stream import GenerationResponse, stream_generate
from quantkit.generation.text.tokenizer import Tokenizer
from recurrent_model import recurrent_model

texts = st.lists(st.integers(0, 3), max_size=60)


# Where drafts come from


@given(texts)
def test_the_index_names_a_place_that_agrees_with_the_end_as_it_says(text: list[int]) -> None:
    index = NgramIndex(text)
    earlier = {
        size: [at for at in range(size, len(text)) if text[at - size : at] == text[-size:]] for size in NGRAM_SIZES
    }
    longest = max((size for size in NGRAM_SIZES if earlier[size]), default=0)
    assert index.matched >= longest
    if not longest:
        assert index.continuation(5) == []
        return
    matched, draft = index.matched, index.continuation(5)
    places = [at for at in range(matched, len(text)) if text[at - matched : at] == text[-matched:]]
    assert draft in [[(text + draft)[at + i] for i in range(5)] for at in places]


def test_the_latest_place_counts_unless_a_longer_agreement_goes_on() -> None:
    assert NgramIndex([1, 2, 3, 9, 1, 2, 4, 9, 1, 2]).continuation(2) == [4, 9]
    followed = [*range(10, 20), 5, 6, 7, 8, 0, 7, 8, 9]  # where 7, 8 came last, 9 followed
    index = NgramIndex([*followed, *range(10, 20), 5, 6, 7, 8])
    assert index.matched == 14 - 8 + 8  # found by two, four and eight, and followed since
    assert index.continuation(3) == [0, 7, 8]


def test_a_loop_is_continued_over_its_end() -> None:
    assert NgramIndex([1, 2, 3, 1, 2]).continuation(7) == [3, 1, 2, 3, 1, 2, 3]
    assert NgramIndex([4, 4, 4]).continuation(3) == [4, 4, 4]


# How long passes take


def test_costs_are_learnt_from_passes_of_other_lengths() -> None:
    times = PassTimes()
    for _ in range(10):
        times.learn(1, 0.01)
        times.learn(3, 0.016)
        times.learn(9, 0.028)
    assert times.single == pytest.approx(0.01)
    assert [times.cost(tokens) for tokens in (1, 3, 6, 9)] == pytest.approx([1, 1.6, 2.2, 2.8], rel=0.05)


def test_an_interruption_moves_little_and_a_lasting_change_is_noticed() -> None:
    times = PassTimes()
    for _ in range(20):
        times.learn(1, 0.01)
        times.learn(5, 0.02)
    before = times.cost(5)
    times.learn(1, 10.0)
    assert times.single < 0.012
    times.learn(5, 10.0)
    assert times.cost(5) < 1.2 * before
    for _ in range(40):
        times.learn(1, 0.03)
        times.learn(5, 0.12)
    assert times.single == pytest.approx(0.03, rel=0.1)
    assert times.cost(5) == pytest.approx(4, rel=0.2)


# What drafts gain, and what they cost at worst: a text is known beforehand, and passes take what a formula says


def simulate(
    text: Sequence[int], prompt: int, cost: Callable[[int], float], longest: int = 16, recurrent: bool = False
) -> tuple[float, int]:
    """Generate the rest of `text` with drafts -> time, as a share of that without drafts, and tokens drafted."""
    speculation = Speculation(longest)
    done, spent, behind = prompt + 1, 0.0, 0
    while done < len(text):
        draft = speculation.draft(text[:done], len(text) - done - 1)
        assert len(draft) <= min(longest, len(text) - done - 1)
        computed = behind + 1 + len(draft)
        seconds = cost(computed)
        spent += seconds
        speculation.passed(computed, seconds)
        right = next((i for i, token in enumerate(draft) if token != text[done + i]), len(draft))
        done += right + 1
        behind = right if recurrent and right < len(draft) else 0
    return spent / (cost(1) * (len(text) - prompt - 1)), speculation.drafted


def memory_bound(tokens: int) -> float:
    return 0.003 * (1 if tokens == 1 else 1.4 + 0.1 * tokens)


def compute_bound(tokens: int) -> float:
    return 0.003 * tokens


def made_of(choices: int, length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(choices), k=length)


def test_a_copy_is_several_times_as_fast() -> None:
    original = made_of(5000, 200)
    share, _ = simulate([*original, *original], 200, memory_bound)
    assert share < 1 / 3


def test_a_copy_with_edits_is_faster() -> None:
    original = made_of(5000, 300)
    edited = [token if i % 20 else 5000 for i, token in enumerate(original)]
    share, _ = simulate([*original, *edited], 300, memory_bound)
    assert share < 1 / 1.8


def test_where_nothing_repeats_nothing_is_drafted() -> None:
    share, drafted = simulate(made_of(10**9, 400), 100, memory_bound)
    assert share == pytest.approx(1)
    assert drafted == 0


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("cost", [memory_bound, compute_bound])
@pytest.mark.parametrize("length", [100, 300, 3000])
@pytest.mark.parametrize("choices", [2, 5, 12, 30])
def test_drafts_that_prove_wrong_cost_less_than_a_twentieth(
    choices: int, length: int, cost: Any, recurrent: bool
) -> None:
    text = made_of(choices, 200 + length, seed=choices)
    share, _ = simulate(text, 200, cost, recurrent=recurrent)
    assert share <= 1.05 + LOSS_ALLOWED / length


def test_passes_whose_time_grows_with_their_tokens_are_left_alone() -> None:
    original = made_of(5000, 600)
    edited = [token if i % 5 else 5000 + i for i, token in enumerate(original)]
    share, drafted = simulate([*original, *edited], 600, compute_bound)
    assert share <= 1.05
    assert drafted < 60


@given(texts, texts, st.lists(st.floats(1e-4, 1e-1), min_size=1, max_size=40))
@settings(deadline=None)
def test_any_text_and_any_times_are_survived(prompt: list[int], text: list[int], times: list[float]) -> None:
    drawn = iter(times * 200)
    simulate([*prompt, *text, 0, 0], len(prompt), lambda tokens: next(drawn))


def test_nothing_is_drafted_before_a_pass_was_timed_nor_when_it_is_off() -> None:
    assert Speculation(8).draft([1, 2, 3] * 9, 8) == []
    off = Speculation(0)
    off.passed(1, 0.1)
    assert off.draft([1, 2, 3] * 9, 8) == []


@pytest.mark.parametrize("longest", [-1, 2.5, True, "16", None])
def test_bad_lengths_of_drafts_are_refused(longest: Any) -> None:
    with pytest.raises(OptionError, match=r"^speculate is "):
        Speculation(longest)


# What drafts change: nothing


class Drafts:
    """Stands in for `Speculation`: drafts whatever it was told to."""

    longest = 8

    def __init__(self, drafts: Sequence[Sequence[int]]) -> None:
        self._drafts = iter(drafts)
        self.drafted = 0

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        draft = list(next(self._drafts, []))[:most]
        self.drafted += len(draft)
        return draft

    def passed(self, tokens: int, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


class Remembering(BigramModel):
    """Its next token depends on all tokens so far, so that none may be missing from the cache, or be left in it."""

    def forward(self, batch: Any, *, every: bool = False, **options: Any) -> Any:
        ((sequence, _),) = batch
        before = sequence.length
        super().forward(batch)
        ends = range(before + 1, sequence.length + 1) if every else [sequence.length]
        return self.table[[hash(tuple(sequence.tokens[:end])) % len(self.table) for end in ends]]


def model_of_letters(tokenizer: Tokenizer, seed: int) -> BigramModel:
    """A model that says some letters, one of them of two tokens, and may end."""
    ids = [*tokenizer.encode("abcdefé", add_special_tokens=False), tiny.SPECIALS.index("<|im_end|>")]
    table = np.full((tiny.VOCAB_SIZE, tiny.VOCAB_SIZE), -20, np.float32)
    table[:, ids] = np.random.default_rng(seed).normal(size=(tiny.VOCAB_SIZE, len(ids)))
    table[:, ids[-1]] -= 2
    return Remembering(table, context_length=48)


options_of_generation = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from([-1, 1, 2, 7, 30, 100]),
        "stop": st.lists(st.text("abcdefé", min_size=1, max_size=3), max_size=2),
        "ignore_eos": st.booleans(),
    }
)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 50),
    temp=st.sampled_from([0.0, 0.7, 2.0]),
    penalty=st.sampled_from([1.0, 1.5]),
    options=options_of_generation,
    data=st.data(),
)
def test_no_draft_changes_the_text(
    tokenizer: Tokenizer, seed: int, temp: float, penalty: float, options: dict[str, Any], data: st.DataObject
) -> None:
    def run(drafts: Sequence[Sequence[int]]) -> tuple[list[GenerationResponse], list[list[int]], Any]:
        seen: list[list[int]] = []

        def watch(tokens: Sequence[int], logits: Any) -> Any:
            seen.append(list(tokens))
            return logits

        processors = [watch, *make_logits_processors(penalty, frequency_penalty=0.1)]
        sampler = make_sampler(temp, seed=seed)
        model = model_of_letters(tokenizer, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[stream_generate.__module__], "Speculation", lambda longest: Drafts(drafts))
            found = list(
                stream_generate(model, tokenizer, "abc", sampler=sampler, logits_processors=processors, **options)
            )
        assert model.sequences[0].closed
        return found, seen, sampler(np.zeros(1000, np.float32))

    plain, seen, next_draw = run([])
    # Drafts that are right for a while, and then wrong or too long.
    known = [response.token for response in plain]
    count = data.draw(st.integers(0, 12))
    drafts, done = [], 1
    for _ in range(count):
        right = data.draw(st.integers(0, 6))
        wrong = data.draw(st.lists(st.integers(0, tiny.VOCAB_SIZE - 1), max_size=3))
        drafts.append([*known[done : done + right], *wrong])
        done += right + 1
    speculated, seen_then, draw_then = run(drafts)

    def essence(found: list[GenerationResponse]) -> list[Any]:
        return [(r.text, r.token, r.generation_tokens, r.finish_reason, r.logits.tobytes()) for r in found]

    assert essence(speculated) == essence(plain)
    assert seen_then == seen
    assert draw_then == next_draw
    accepted = [response.draft_n_accepted for response in speculated]
    assert accepted == list(np.cumsum([response.from_draft for response in speculated]))
    assert all(response.draft_n_accepted <= response.draft_n for response in speculated)


def test_a_loop_is_drafted_and_counted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Timed(BigramModel):
        def forward(self, batch: Any, **options: Any) -> Any:
            nonlocal now
            now += memory_bound(len(batch[0][1]))
            return super().forward(batch, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    model = Timed(BigramModel.of({5: 6, 6: 7, 7: 5}, tiny.VOCAB_SIZE).table, context_length=200)
    plain, speculated = (
        list(stream_generate(model, tokenizer, [5, 6, 7, 5], max_tokens=100, ignore_eos=True, speculate=longest))
        for longest in (0, 8)
    )
    assert [response.token for response in speculated] == [response.token for response in plain]
    assert {(response.from_draft, response.draft_n) for response in plain} == {(False, 0)}
    last = speculated[-1]
    assert last.draft_n == last.draft_n_accepted == sum(response.from_draft for response in speculated) > 60
    assert last.generation_tps > 2 * plain[-1].generation_tps


def test_a_model_with_states_says_the_same_with_drafts(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = recurrent_model(), list(range(4, 40))
    plain = list(stream_generate(model, tokenizer, prompt, max_tokens=100, ignore_eos=True))
    known = [response.token for response in plain]
    drafts, done = [], 1
    for right, wrong in [(3, 2), (0, 4), (2, 0), (5, 1), (1, 1), (0, 0), (4, 3), (0, 1)] * 4:
        drafts.append([*known[done : done + right], *[(known[(done + right) % 100] + 1) % tiny.VOCAB_SIZE] * wrong])
        done += right + 1
    monkeypatch.setattr(sys.modules[stream_generate.__module__], "Speculation", lambda longest: Drafts(drafts))
    speculated = list(stream_generate(model, tokenizer, prompt, max_tokens=100, ignore_eos=True))
    assert [response.token for response in speculated] == known
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(plain, speculated, strict=True))
    assert 40 < speculated[-1].draft_n_accepted < speculated[-1].draft_n


@pytest.mark.real
@pytest.mark.parametrize("temp", [0.0, 0.5])
def test_a_real_model_says_the_same_with_drafts(temp: float) -> None:
    from quantkit.generation.loading import load

    model, tokenizer = load(os.environ["QUANTKIT_TEST_MODEL"])
    code = "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n"
    code += "    return area(width, height) * depth\n"
    messages = [
        {"role": "user", "content": f"```python\n{code}```\n\nRename `width` to `w` and print the complete code."}
    ]
    plain, speculated = (
        list(
            stream_generate(
                model, tokenizer, messages, max_tokens=80, sampler=make_sampler(temp, seed=3), speculate=longest
            )
        )
        for longest in (0, 12)
    )
    model.close()
    assert [response.token for response in speculated] == [response.token for response in plain]
    assert [response.text for response in speculated] == [response.text for response in plain]
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(plain, speculated, strict=True))
    assert speculated[-1].draft_n_accepted > 10
