"""`vocab.json` with `merges.txt`: the same tokenizer as its tokenizer.json, split as its class splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from nasty_strings import NASTY
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.vocabularies import byte_level
from tiny_tokenizers import BYTE_LEVEL

FILE = Path("model/vocab.json")
LIBRARY: dict[str, Any] = json.loads(BYTE_LEVEL["tokenizer.json"])
VOCAB: dict[str, int] = LIBRARY["model"]["vocab"]
MERGES = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in LIBRARY["model"]["merges"])


def opened(vocab: Any = VOCAB, merges: str = MERGES, model_type: str = "gpt2", **config: Any) -> Tokenizer:
    content = json.dumps(vocab).encode()
    return byte_level.rebuilt(content, merges.encode(), FILE, config, model_type).tokenizer


@pytest.mark.parametrize("prefixed", [True, False])
def test_equals_the_same_tokenizer_as_json(prefixed: bool) -> None:
    expected = Tokenizer.from_str(json.dumps({**LIBRARY, "added_tokens": [], "normalizer": None}))
    expected.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed, use_regex=True)
    ours = opened(add_prefix_space=prefixed)
    for text in NASTY:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == expected.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == expected.decode(ids)


@pytest.mark.parametrize(
    ("model_type", "config", "of_qwen"),
    [
        ("gpt2", {}, False),
        ("qwen2", {}, True),
        ("qwen3_moe", {}, True),
        ("llama", {"tokenizer_class": "Qwen2TokenizerFast"}, True),
        ("qwen2", {"tokenizer_class": "GPT2Tokenizer"}, False),
        ("", {}, False),
    ],
)
def test_the_class_says_how_text_is_split(model_type: str, config: dict[str, Any], of_qwen: bool) -> None:
    tokenizer = opened(model_type=model_type, **config)
    assert (tokenizer.normalizer is not None) is of_qwen
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("12")]
    assert words == (["1", "2"] if of_qwen else ["12"])


def test_the_end_of_text_is_named_where_there_is_one() -> None:
    vocab = {**VOCAB, "<|endoftext|>": len(VOCAB)}
    for model_type, names in {"gpt2": ["bos_token", "eos_token"], "qwen2": ["eos_token", "pad_token"]}.items():
        found = byte_level.rebuilt(json.dumps(vocab).encode(), MERGES.encode(), FILE, {}, model_type)
        assert found.named == dict.fromkeys(names, "<|endoftext|>")
    assert byte_level.rebuilt(json.dumps(VOCAB).encode(), MERGES.encode(), FILE, {}, "gpt2").named == {}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ({"a": "b"}, "", r"vocab\.json: has a token whose id is no whole number"),
        ({"a": 2**40}, "", r"^[^\n]*vocab\.json: does not fit merges\.txt[^\n]*$"),
        ({"a": 0}, "a b\n", r"vocab\.json: does not fit merges\.txt"),
        (VOCAB, "#version: 0.2\na\n", r"merges\.txt: line 2 is no pair of tokens"),
        (VOCAB, "t h e\n", r"merges\.txt: line 1 is no pair of tokens"),
        ([], "", r"vocab\.json: is not a JSON object"),
    ],
)
def test_damaged_files_are_refused(vocab: Any, merges: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(vocab, merges)


def test_marks_of_the_ends_of_words_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"vocab\.json: marks the ends of words"):
        opened(VOCAB, "t h</w>\n")
