"""Tokenizers that make a text explode are refused with the file's name; those that people use are not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from quantkit.errors import CheckpointError, GenerationError
from quantkit.generation.text.tokenizer import Tokenizer
from tiny_tokenizers import BYTE_FALLBACK, BYTE_LEVEL, edited

Part = normalizers.Normalizer | pre_tokenizers.PreTokenizer | decoders.Decoder


def with_parts(files: dict[str, bytes], **parts: Part) -> Tokenizer:
    backend = Backend.from_buffer(files["tokenizer.json"])
    for name, part in parts.items():
        setattr(backend, name, part)
    return Tokenizer(files | {"tokenizer.json": backend.to_str().encode()}, "model")


def replace(pattern: str, content: str) -> Any:
    return normalizers.Replace(pattern, content)


EXPLODING = {
    "doubling": normalizers.Sequence([replace("a", "aa")] * 40),
    "nested": normalizers.Sequence([normalizers.Sequence([replace("a", "aa")] * 8)] * 5),
    "two letters in turn": normalizers.Sequence([replace("a", "bbb"), replace("b", "aaa")] * 20),
    "between all characters": normalizers.Sequence([replace("", "aa")] * 30),
    "a regular expression": normalizers.Sequence([normalizers.Replace(Regex("a|b"), "ab")] * 40),
    "bytes as characters": normalizers.Sequence([normalizers.ByteLevel()] * 40),
}


@pytest.mark.parametrize("name", EXPLODING)
def test_an_exploding_normalizer_is_refused_when_it_explodes(name: str) -> None:
    tokenizer = with_parts(BYTE_LEVEL, normalizer=EXPLODING[name])
    with pytest.raises(GenerationError, match=r"tokenizer\.json: its normalizer makes this text more than 100 times"):
        tokenizer.encode("é a b")


TOKEN_EXPLODES = r"tokenizer\.json: its normalizer makes the token 'xa' more than 100 times as long"


@pytest.mark.parametrize("spelling", ['"normalized": true', '"\\u006eormalized":true'])
def test_an_added_token_that_explodes_is_refused_at_once(spelling: str) -> None:
    content = json.loads(BYTE_LEVEL["tokenizer.json"])
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
    }
    number = len(content["model"]["vocab"])
    flags = '"lstrip": false, "rstrip": false, "single_word": false, "special": false'
    token = f'{{"id": {number}, "content": "xa", {flags}, {spelling}}}'
    text = json.dumps(content).replace('"added_tokens": [', f'"added_tokens": [{token}, ')
    with pytest.raises(CheckpointError, match=TOKEN_EXPLODES):
        Tokenizer(BYTE_LEVEL | {"tokenizer.json": text.encode()}, "model")


def test_a_token_of_another_file_that_explodes_is_refused_at_once() -> None:
    with pytest.raises(CheckpointError, match=TOKEN_EXPLODES):
        with_parts(edited(added_tokens={"xa": 320}), normalizer=EXPLODING["doubling"])


def test_a_text_that_does_not_grow_passes() -> None:
    tokenizer = with_parts(BYTE_LEVEL, normalizer=EXPLODING["doubling"])
    assert tokenizer.encode("xyz " * 1000) == Tokenizer(BYTE_LEVEL, "model").encode("xyz " * 1000)


@pytest.mark.parametrize(
    "normalizer", [replace("a", "b" * 300), replace("", "b" * 300), normalizers.Prepend("b" * 300)]
)
def test_an_endless_replacement_is_refused_at_once(normalizer: normalizers.Normalizer) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has a step that writes 300 characters at once"):
        with_parts(BYTE_LEVEL, normalizer=normalizer)


def test_an_endless_table_is_refused_at_once() -> None:
    content = json.loads(BYTE_LEVEL["tokenizer.json"])
    table = base64.b64encode(b"\0\0\0\0" + b"a" * 2_000_000).decode()
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has a table of 26\d{5} characters"):
        Tokenizer(BYTE_LEVEL | {"tokenizer.json": json.dumps(content).encode()}, "model")


def test_endless_steps_are_refused_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: rewrites text in 1000 steps"):
        with_parts(BYTE_LEVEL, pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits()] * 1000))


@pytest.mark.parametrize(
    ("parts", "section"),
    [
        ({"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 40)}, "pre-tokenizer"),
        ({"decoder": decoders.Sequence([decoders.Replace("a", "aa")] * 40)}, "decoder"),
    ],
)
def test_other_exploding_parts_are_refused_at_once(parts: dict[str, Part], section: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: its {section} can make a text more than 100 times"):
        with_parts(BYTE_LEVEL, **parts)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFC(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        normalizers.Sequence([normalizers.Prepend("▁"), replace(" ", "▁")]),
        normalizers.Sequence([replace(str(digit), f" {digit}") for digit in range(10)]),
    ],
)
def test_normalizers_that_people_use_pass(normalizer: normalizers.Normalizer) -> None:
    tokenizer = with_parts(BYTE_FALLBACK, normalizer=normalizer)
    assert tokenizer.encode("0123456789 ﷺ" * 100) is not None
