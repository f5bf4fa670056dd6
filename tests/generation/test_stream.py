"""The generation loop over a model whose every answer is known: text, stops, limits, timings, clean-up."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from bigram import BigramModel
from quantkit.errors import GenerationError, OptionError
from quantkit.generation.sampling import make_logits_processors, make_sampler
from quantkit.generation.stream import PROMPT_PIECE, GenerationResponse, generate, stream_generate
from quantkit.generation.text.tokenizer import Tokenizer

END_OF_TURN = tiny.SPECIALS.index("<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def saying(tokenizer: Tokenizer, text: str, *, then: int | None = END_OF_TURN, **options: Any) -> BigramModel:
    """A model that says `text` after its first character (each byte may be in it once) and then gives token `then`."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    ends = [] if then is None else [then]
    return BigramModel.of(dict(zip(ids, [*ids[1:], *ends], strict=False)), tiny.VOCAB_SIZE, **options)


def responses(
    model: BigramModel, tokenizer: Tokenizer, prompt: str | Sequence[Any] = "a", **options: Any
) -> list[GenerationResponse]:
    return list(stream_generate(model, tokenizer, prompt, **options))


def text_of(found: list[GenerationResponse]) -> str:
    return "".join(response.text for response in found)


def test_text_up_to_the_end_token(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "abcdé!")
    found = responses(model, tokenizer)
    assert text_of(found) == "bcdé!"
    assert [response.finish_reason for response in found] == [None] * 6 + ["stop"]
    assert [response.text for response in found] == ["b", "c", "d", "", "é", "!", ""]
    assert found[-1].token == END_OF_TURN
    assert [response.generation_tokens for response in found] == list(range(1, 8))
    assert {response.prompt_tokens for response in found} == {2}  # the BOS and "a"
    assert model.sequences[0].tokens == tokenizer.encode("abcdé!")
    assert generate(model, tokenizer, "a") == "bcdé!"


def test_other_end_tokens_count_too(tokenizer: Tokenizer) -> None:
    end_of_text = tiny.SPECIALS.index("<|end_of_text|>")
    assert responses(saying(tokenizer, "ab", then=end_of_text), tokenizer)[-1].finish_reason == "stop"


def test_ignore_eos_goes_on(tokenizer: Tokenizer) -> None:
    found = responses(saying(tokenizer, "abc"), tokenizer, ignore_eos=True, max_tokens=5)
    assert [response.finish_reason for response in found] == [None] * 4 + ["length"]
    assert text_of(found) == "bc"  # special tokens are silent


def test_max_tokens(tokenizer: Tokenizer) -> None:
    found = responses(saying(tokenizer, "abcdef"), tokenizer, max_tokens=3)
    assert text_of(found) == "bcd"
    assert found[-1].finish_reason == "length"


def test_character_cut_by_the_limit_shows_as_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    found = responses(saying(tokenizer, "ab👋"), tokenizer, max_tokens=3)
    assert [response.text for response in found] == ["b", "", "\ufffd"]


def test_prompts(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "abc")
    expected: dict[str, tuple[Any, list[int]]] = {
        "text": ("xa", tokenizer.encode("xa")),
        "text with a BOS": ("<|begin_of_text|>xa", tokenizer.encode("xa")),
        "ids": ([7, 8], [7, 8]),
        "array": (np.array([7, 8]), [7, 8]),
        "messages": (
            [{"role": "user", "content": "a"}],
            tokenizer.encode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),  # one BOS
        ),
    }
    for prompt, tokens in expected.values():
        assert responses(model, tokenizer, prompt, max_tokens=1)[0].prompt_tokens == len(tokens)
        assert model.sequences[-1].tokens == tokens


@pytest.mark.parametrize("prompt", ["", [], [{"role": "user"}][:0]])
def test_empty_prompt_is_refused_at_once(tokenizer: Tokenizer, prompt: Any) -> None:
    model = saying(tokenizer, "ab")
    with pytest.raises(GenerationError, match="prompt is empty"):
        stream_generate(model, tokenizer, prompt)
    assert model.sequences == []


@pytest.mark.parametrize("prompt", [7, None, [1.5], ["a"], [True], b"a", {"role": "user"}, [[5]], np.ones((2, 2), int)])
def test_a_prompt_of_another_kind_is_refused(tokenizer: Tokenizer, prompt: Any) -> None:
    with pytest.raises(GenerationError, match="expected a text, token ids, or messages"):
        stream_generate(saying(tokenizer, "ab"), tokenizer, prompt)


@pytest.mark.parametrize("token", [-1, tiny.VOCAB_SIZE])
def test_token_outside_the_vocabulary_is_named(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(GenerationError, match=f"token id {token} is outside .* 0 to {tiny.VOCAB_SIZE - 1}"):
        stream_generate(saying(tokenizer, "ab"), tokenizer, [0, token])


def test_prompt_longer_than_the_context(tokenizer: Tokenizer) -> None:
    with pytest.raises(GenerationError, match="has 9 tokens, the model's context holds 8"):
        stream_generate(saying(tokenizer, "ab", context_length=8), tokenizer, [5] * 9)


@pytest.mark.parametrize("max_tokens", [-1, 100])
def test_generation_ends_when_the_context_is_full(tokenizer: Tokenizer, max_tokens: int) -> None:
    model = BigramModel.of({5: 5}, tiny.VOCAB_SIZE, context_length=8)
    found = responses(model, tokenizer, [5] * 6, max_tokens=max_tokens)
    assert len(found) == 3  # two that are run, and one after the last
    assert found[-1].finish_reason == "length"
    assert model.sequences[0].length == 8
    assert len(responses(model, tokenizer, [5] * 8, max_tokens=max_tokens)) == 1


@pytest.mark.parametrize("max_tokens", [0, -2, 2.5, 2.0, True, "8", None])
def test_bad_max_tokens(tokenizer: Tokenizer, max_tokens: int) -> None:
    with pytest.raises(OptionError, match=r"^max_tokens is "):
        stream_generate(saying(tokenizer, "ab"), tokenizer, "a", max_tokens=max_tokens)


def test_stop_string_over_several_tokens_is_cut(tokenizer: Tokenizer) -> None:
    found = responses(saying(tokenizer, "abcdefgh"), tokenizer, stop="def")
    assert [response.text for response in found] == ["b", "c", "", "", ""]
    assert found[-1].finish_reason == "stop"


def test_held_back_text_is_given_when_it_was_no_stop(tokenizer: Tokenizer) -> None:
    found = responses(saying(tokenizer, "abcdefgh"), tokenizer, stop=["dex", "ghi"])
    assert [response.text for response in found] == ["b", "c", "", "", "def", "", "", "gh"]


@pytest.mark.parametrize("stop", ["", ["x", ""], 7, ["x", 7], None])
def test_bad_stop_strings_are_refused(tokenizer: Tokenizer, stop: Any) -> None:
    with pytest.raises(OptionError, match=r"^stop is "):
        stream_generate(saying(tokenizer, "ab"), tokenizer, "a", stop=stop)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("thinker")
    tiny.write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "a>"),
        ({}, "a>"),
        ({"enable_thinking": True}, "a>"),
        ({"enable_thinking": False}, "a!>"),
        ({"add_generation_prompt": False, "other": [1, {"b": None}]}, "a"),
    ],
)
def test_variables_reach_the_chat_template(thinker: Tokenizer, given: Any, expected: str) -> None:
    model = saying(thinker, "abc")
    responses(model, thinker, [{"role": "user", "content": "a"}], chat_template_kwargs=given, max_tokens=1)
    assert model.sequences[-1].tokens == thinker.encode(expected, add_special_tokens=False)


def test_half_a_surrogate_pair_reads_as_a_replacement_character(thinker: Tokenizer) -> None:
    model = saying(thinker, "abc")
    for prompt, expected in (("a\ud800", "a\ufffd"), ([{"role": "user", "content": "a\udcff"}], "a\ufffd>")):
        responses(model, thinker, prompt, max_tokens=1)
        assert model.sequences[-1].tokens[-len(expected.encode()) :] == thinker.encode(
            expected, add_special_tokens=False
        )


@pytest.mark.parametrize(
    "given", [{"messages": []}, {"tokenize": True}, {"now": "1"}, {7: 8}, ["enable_thinking"], "enable_thinking"]
)
def test_bad_template_variables_are_refused(thinker: Tokenizer, given: Any) -> None:
    with pytest.raises(OptionError, match=r"^chat_template_kwargs "):
        responses(saying(thinker, "ab"), thinker, [{"role": "user", "content": "a"}], chat_template_kwargs=given)


def test_another_tokenizer_is_refused(thinker: Tokenizer) -> None:
    stranger: Any = object()
    with pytest.raises(
        OptionError, match=r"^tokenizer is <object .*; expected what `load` or `load_tokenizer` returns"
    ):
        responses(saying(thinker, "ab"), stranger, "a")


@pytest.mark.parametrize(
    ("option", "wrong"), [("sampler", 0.7), ("logits_processors", len), ("logits_processors", [1.1])]
)
def test_what_is_no_function_is_refused(thinker: Tokenizer, option: str, wrong: Any) -> None:
    with pytest.raises(OptionError, match=rf"^{option} is .*; expected a .*function"):
        responses(saying(thinker, "ab"), thinker, "a", **{option: wrong})


@pytest.mark.parametrize("prompt", ["a", [5]])
def test_template_variables_without_a_conversation_are_refused(thinker: Tokenizer, prompt: Any) -> None:
    with pytest.raises(OptionError, match=r"^chat_template_kwargs "):
        responses(saying(thinker, "ab"), thinker, prompt, chat_template_kwargs={"enable_thinking": False})


def test_logits_processors_see_all_tokens_and_change_the_choice(tokenizer: Tokenizer) -> None:
    model = BigramModel.of({5: 5}, tiny.VOCAB_SIZE)
    seen: list[list[int]] = []

    def ban_five(tokens: Sequence[int], logits: Any) -> Any:
        seen.append(list(tokens))
        return np.where(np.arange(logits.size) == 5, -np.inf, logits).astype(np.float32)

    found = responses(model, tokenizer, [5], logits_processors=[ban_five], max_tokens=2, ignore_eos=True)
    assert [response.token for response in found] == [0, 0]
    assert seen == [[5], [5, 0]]
    assert found[0].logits[5] == -np.inf


def test_penalties_and_seeded_sampling_together(tokenizer: Tokenizer) -> None:
    table = np.random.default_rng(0).normal(size=(tiny.VOCAB_SIZE, tiny.VOCAB_SIZE)).astype(np.float32)

    def text(seed: int) -> list[int]:
        chosen: dict[str, Any] = {
            "sampler": make_sampler(temp=1.0, top_k=50, seed=seed),
            "logits_processors": make_logits_processors(repetition_penalty=1.2),
        }
        found = responses(BigramModel(table), tokenizer, max_tokens=20, ignore_eos=True, **chosen)
        return [response.token for response in found]

    assert text(1) == text(1) != text(2)


def test_logprobs_are_those_of_the_logits(tokenizer: Tokenizer) -> None:
    response = responses(saying(tokenizer, "ab"), tokenizer)[0]
    total = math.e + tiny.VOCAB_SIZE - 1
    assert response.logprobs.shape == (tiny.VOCAB_SIZE,)
    assert response.logprobs[response.token] == pytest.approx(1 - math.log(total))
    assert float(np.exp(response.logprobs).sum()) == pytest.approx(1, abs=1e-5)


def test_progress_of_a_long_prompt(tokenizer: Tokenizer) -> None:
    model = BigramModel.of({}, tiny.VOCAB_SIZE, context_length=4 * PROMPT_PIECE)
    done: list[tuple[int, int]] = []
    total = 2 * PROMPT_PIECE + 1
    responses(model, tokenizer, [5] * total, max_tokens=1, progress=lambda *state: done.append(state))
    assert done == [(PROMPT_PIECE, total), (2 * PROMPT_PIECE, total), (total, total)]
    assert model.sequences[0].length == total


def test_speeds(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0

    class Slow(BigramModel):
        def forward(self, batch: Any, **options: Any) -> Any:
            nonlocal now
            now += 0.25 * len(batch[0][1])
            return super().forward(batch, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    chain = Slow(saying(tokenizer, "abcd").table)
    found = responses(chain, tokenizer, max_tokens=3)
    assert [response.prompt_tps for response in found] == [2 / 0.5] * 3
    assert [response.generation_tps for response in found] == [0.0, 1 / 0.25, 2 / 0.5]


def test_sequence_is_closed_at_the_end(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "abc")
    responses(model, tokenizer)
    assert [sequence.closed for sequence in model.sequences] == [True]


def test_sequence_is_closed_when_the_reader_leaves(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "abcdef")
    stream = stream_generate(model, tokenizer, "a")
    next(stream)
    assert not model.sequences[0].closed
    stream.close()
    assert model.sequences[0].closed


def test_sequence_is_closed_when_something_fails(tokenizer: Tokenizer) -> None:
    broken = BigramModel(np.full((tiny.VOCAB_SIZE, tiny.VOCAB_SIZE), np.nan, np.float32))
    with pytest.raises(GenerationError, match="greatest logit is nan"):
        responses(broken, tokenizer)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        responses(broken, tokenizer, progress=interrupt)
    assert [sequence.closed for sequence in broken.sequences] == [True, True]


def test_missing_chat_template_is_reported(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    plain = Tokenizer.from_folder(tmp_path)
    with pytest.raises(GenerationError, match="no chat template"):
        stream_generate(saying(plain, "ab"), plain, [{"role": "user", "content": "a"}])


def test_a_greedy_token_costs_little_beyond_the_model(tokenizer: Tokenizer) -> None:
    row = np.zeros(49_152, np.float32)
    row[5] = 1

    class Instant(BigramModel):
        def forward(self, batch: Any, **options: Any) -> Any:
            batch[0][0].tokens += batch[0][1]
            return row[None]

    model = Instant(row[None], context_length=10_000)

    def seconds_per_token() -> float:  # of this process alone: other ones may be busy
        begin = time.process_time()
        count = len(responses(model, tokenizer, [5], max_tokens=400, ignore_eos=True, stop=["never said"]))
        return (time.process_time() - begin) / count

    assert min(seconds_per_token() for _ in range(5)) < 150e-6  # measured: 12e-6
