"""The library behind the tokenizer: its errors and panics name the file, and nothing else leaves it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from quantkit.errors import CheckpointError, GenerationError
from quantkit.generation.text.tokenizer import Tokenizer
from tiny_tokenizers import BYTE_LEVEL, rebuilt

CATASTROPHE = Regex("(a+)+$")  # the library panics where a regular expression searches too long


def test_a_panic_while_encoding_names_the_file() -> None:
    backend = Backend.from_buffer(BYTE_LEVEL["tokenizer.json"])
    backend.pre_tokenizer = pre_tokenizers.Split(CATASTROPHE, "isolated")
    tokenizer = Tokenizer(BYTE_LEVEL | {"tokenizer.json": backend.to_str().encode()}, "model")
    assert tokenizer.encode("b")
    with pytest.raises(GenerationError, match=r"tokenizer\.json: the tokenizer fails on this text: .*retry-limit"):
        tokenizer.encode("a" * 60 + "b")


def test_a_panic_while_opening_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3's."""

    class Panicking:
        @staticmethod
        def from_str(text: str) -> Any:
            raise PanicException("index out of bounds")

    monkeypatch.setattr("quantkit.generation.text.vocabulary.Tokenizer", Panicking)
    with pytest.raises(CheckpointError, match=r"model/tokenizer\.json: .*index out of bounds"):
        Tokenizer(BYTE_LEVEL, "model")


def test_an_interruption_is_no_panic(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        @staticmethod
        def from_str(text: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr("quantkit.generation.text.vocabulary.Tokenizer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer(BYTE_LEVEL, "model")


@pytest.mark.parametrize(
    "parts",
    [
        {"model": None},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}},
        {"added_tokens": [{"id": -1, "content": "x"}]},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        {"decoder": {"type": "Sequence", "decoders": 7}},
    ],
)
def test_damaged_parts_name_the_file(parts: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"model/tokenizer\.json: not a tokenizer that"):
        Tokenizer(rebuilt(**parts), "model")


def test_a_deep_file_names_itself() -> None:
    deep = json.dumps({"normalizer": None})[:-5] + '{"type":"Sequence","normalizers":[' * 10_000
    with pytest.raises(CheckpointError, match=r"model/tokenizer\.json: not a tokenizer that"):
        Tokenizer(BYTE_LEVEL | {"tokenizer.json": deep.encode()}, "model")
