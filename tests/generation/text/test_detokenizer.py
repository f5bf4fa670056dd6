"""Streaming: the text of any ids, character by character, as decoding at once would give it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

import tiny
from quantkit.errors import UnsupportedError
from quantkit.generation.text.tokenizer import Tokenizer
from tiny_tokenizers import BYTE_FALLBACK, BYTE_LEVEL

BOS, END_OF_TEXT, TURN, END_OF_TURN = range(4)  # of tiny.SPECIALS

# Special tokens are silent and sentencepiece's mark reads as a space: neither comes back as written.
texts = st.text(st.characters(codec="utf-8", exclude_characters="<▁"), max_size=30)

KINDS = {"byte level": Tokenizer(BYTE_LEVEL, "model"), "byte fallback": Tokenizer(BYTE_FALLBACK, "model")}


def streamed(tokenizer: Tokenizer, ids: list[int], *, continuation: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(continuation=continuation)
    return [*(detokenizer.add(token) for token in ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=texts)
def test_streaming_returns_the_text(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(deadline=None)
@given(ids=st.lists(st.integers(-2, tiny.VOCAB_SIZE + 10) | st.just(2**40), max_size=30))
def test_streaming_any_bytes_equals_decoding_at_once(ids: list[int]) -> None:
    tokenizer = KINDS["byte level"]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_character_appears_with_its_last_byte(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("a👋b", add_special_tokens=False)
    pieces = streamed(tokenizer, ids, continuation=True)
    assert [piece for piece in pieces if piece] == [" a" if kind == "byte fallback" else "a", "👋", "b"]
    assert len(ids) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_unfinished_character_is_replaced_at_the_end_only(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("a👋", add_special_tokens=False)[:-1]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces[:-1]) == "a"
    assert pieces[-1] == "\ufffd"


def test_broken_character_does_not_hold_back_what_follows() -> None:
    tokenizer = KINDS["byte fallback"]
    first = tokenizer.encode("👋", add_special_tokens=False)[-4]
    rest = tokenizer.encode("bc", add_special_tokens=False)[-1]
    assert streamed(tokenizer, [first, rest]) == ["", "\ufffdbc", ""]


def test_leading_space_belongs_to_a_continuation_only() -> None:
    tokenizer = KINDS["byte fallback"]
    ids = tokenizer.encode("abc abc", add_special_tokens=False)
    assert streamed(tokenizer, ids) == ["abc", " abc", ""]
    assert streamed(tokenizer, ids, continuation=True) == [" abc", " abc", ""]


def test_special_tokens_are_silent() -> None:
    tokenizer = KINDS["byte level"]
    ids = tokenizer.encode("<|im_start|>Hi<|im_end|>")
    assert ids[:2] == [BOS, TURN]
    assert ids[-1] == END_OF_TURN
    assert "".join(streamed(tokenizer, ids)) == "Hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|begin_of_text|><|im_start|>Hi<|im_end|>"


def test_streaming_holds_back_one_character_at_most() -> None:
    tokenizer = KINDS["byte level"]
    unfinished = tokenizer.encode("👋", add_special_tokens=False)[0]  # no number of these makes a character
    pieces = streamed(tokenizer, [unfinished] * 100)
    assert all(len("".join(pieces[: count + 1])) >= count for count in range(100))


@pytest.mark.parametrize(
    ("decoder", "pieces", "text"),
    [
        (decoders.Metaspace("▁", "always"), ["▁a", "▁abc"], "a abc"),
        (decoders.Metaspace("▁", "never"), ["▁a", "▁abc"], " a abc"),
        (decoders.Sequence([decoders.Replace("▁", "_")]), ["▁a", "bc"], "_abc"),
    ],
)
def test_other_decoders(decoder: decoders.Decoder, pieces: list[str], text: str) -> None:
    tokenizer = with_decoder(decoder)
    vocabulary = Backend.from_buffer(BYTE_FALLBACK["tokenizer.json"]).get_vocab()
    assert "".join(streamed(tokenizer, [vocabulary[piece] for piece in pieces])) == text


def test_unknown_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json.*WordPiece"):
        with_decoder(decoders.WordPiece()).detokenizer()


def with_decoder(decoder: decoders.Decoder) -> Tokenizer:
    backend = Backend.from_buffer(BYTE_FALLBACK["tokenizer.json"])
    backend.decoder = decoder
    return Tokenizer({"tokenizer.json": backend.to_str().encode()}, "model")
