"""Vocabularies of bytes with ranks, tiktoken's and Mistral's: what a slow BPE gives, what is special, damaged files."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from nasty_strings import NASTY
from quantkit.errors import CheckpointError
from quantkit.formats.vocabularies import tekken, tiktoken
from quantkit.formats.vocabularies.rebuilt import byte_letters

WORDS = [b"th", b"the", b" the", b"in", b"ing", b" a", b"nd", b" and", b"\n\n", b"  ", b"12", "é".encode(), b"'s"]
TOKENS = [bytes([byte]) for byte in range(256)] + WORDS
RANKS = {token: rank for rank, token in enumerate(TOKENS)}
FILE = Path("model/tokenizer.model")
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]"]


def tiktoken_file(tokens: list[bytes] = TOKENS) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def tekken_file(**changes: Any) -> dict[str, Any]:
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(TOKENS)]
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL)]
    config = {"pattern": PATTERN, "default_vocab_size": len(TOKENS) + 9, "default_num_special_tokens": 10}
    return {"config": config, "vocab": vocab, "special_tokens": special, "version": 3} | changes


def tekken_of(content: dict[str, Any]) -> Tokenizer:
    return tekken.rebuilt(json.dumps(content).encode(), FILE, {}).tokenizer


def slow_bpe(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Join the neighbours whose union has the lowest rank, the leftmost first, until no union is a token."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[at : at + 1] for at in range(len(word))]
    while True:
        unions = [
            (ranks[left + right], at)
            for at, (left, right) in enumerate(itertools.pairwise(parts))
            if left + right in ranks
        ]
        if not unions:
            return [ranks[part] for part in parts]
        at = min(unions)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def expected(tokenizer: Tokenizer, text: str, ranks: dict[bytes, int]) -> list[int]:
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return [token for word in words for token in slow_bpe(bytes(byte_of[letter] for letter in word), ranks)]


def test_ranks_are_merged_as_tiktoken_merges_them() -> None:
    tokenizer = tiktoken.rebuilt(tiktoken_file(), FILE, {}).tokenizer
    for text in NASTY:
        ids = tokenizer.encode(text).ids
        assert ids == expected(tokenizer, text, RANKS)
        assert tokenizer.decode(ids) == text


def test_special_tokens_of_tekken_come_first() -> None:
    tokenizer = tekken_of(tekken_file())
    kept = {token: rank + 10 for token, rank in RANKS.items() if rank < len(TOKENS) - 1}
    for text in NASTY:
        if any(special in text for special in SPECIAL):
            continue
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected(tokenizer, text, kept)
    assert tokenizer.encode("[INST] the").tokens == ["<s>", "[INST]", "Ġthe"]
    assert [tokenizer.id_to_token(token) for token in (0, 3, 4, 9)] == ["<unk>", "[INST]", "<SPECIAL_4>", "<SPECIAL_9>"]
    assert tokenizer.token_to_id("'s") is None  # beyond the vocabulary's size


def test_tekken_without_special_tokens_has_those_of_its_time() -> None:
    content = tekken_file()
    del content["special_tokens"]
    content["config"] = {"pattern": PATTERN}
    tokenizer, named = tekken.rebuilt(json.dumps(content).encode(), FILE, {})
    assert tokenizer.token_to_id("[TOOL_CONTENT]") == 19
    assert tokenizer.token_to_id("Ċ") == 20 + 10
    assert named == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def test_how_text_is_split_depends_on_the_name_where_the_file_is_unknown() -> None:
    llama = tiktoken.rebuilt(tiktoken_file(), FILE, {}).tokenizer
    qwen = tiktoken.rebuilt(tiktoken_file(), Path("model/qwen.tiktoken"), {}).tokenizer
    assert llama.encode("12").tokens == ["12"]
    assert qwen.encode("12").tokens == ["1", "2"]
    assert qwen.encode("e\u0301").ids == qwen.encode("é").ids
    assert llama.encode("e\u0301").ids != llama.encode("é").ids


@pytest.mark.parametrize(
    ("ranks", "special", "known"),
    [
        (128_000, 256, {"<|begin_of_text|>": 0, "<|eot_id|>": 9, "<|reserved_special_token_2|>": 12}),
        (
            200_000,
            2048,
            {"<|header_start|>": 5, "<|image|>": 90, "<|patch|>": 92, "<|reserved_special_token_0|>": 1144},
        ),
        (151_643, 208, {"<|endoftext|>": 0, "<|im_end|>": 2, "<|extra_204|>": 207}),
    ],
)
def test_special_tokens_of_published_files(ranks: int, special: int, known: dict[str, int]) -> None:
    texts = tiktoken.ENCODINGS[ranks].special
    assert len(texts) == len(set(texts)) == special
    assert {text: texts.index(text) for text in known} == known


def test_kimi_keeps_han_apart() -> None:
    (pattern,) = tiktoken.ENCODINGS[163_584].patterns
    split = Split(Regex(pattern), "isolated")
    words = [word for word, _ in split.pre_tokenize_str("Hello世界abc don't 12345 a/b/\n\n  x")]
    assert words == ["Hello", "世界", "abc", " don't", " ", "123", "45", " a", "/b", "/\n\n", " ", " x"]


def test_published_files_have_special_tokens_unless_the_config_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = tiktoken.Encoding((PATTERN,), ("<b>", "<e>"), "<b>", "<e>")
    monkeypatch.setattr(tiktoken, "ENCODINGS", {len(TOKENS): encoding})
    tokenizer, named = tiktoken.rebuilt(tiktoken_file(), FILE, {})
    assert named == {"bos_token": "<b>", "eos_token": "<e>"}
    assert tokenizer.encode("the<e>").ids == [len(TOKENS), RANKS[b"the"], len(TOKENS) + 1]
    listed = tiktoken.rebuilt(tiktoken_file(), FILE, {"added_tokens_decoder": {"300": {"content": "<c>"}}})
    assert listed.tokenizer.get_vocab_size() == len(TOKENS)
    assert not listed.named


@pytest.mark.parametrize("content", [b"AA== 0\n!! 1\n", b"AA== 0 1\n", b"AA== x\n", b"AA==\n"])
def test_a_line_that_is_no_token_is_named(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: line \d is no token in base64 and its rank"):
        tiktoken.rebuilt(content, FILE, {})


def test_a_long_token_or_too_many_are_refused_at_once() -> None:
    long, many = base64.b64encode(bytes(10_000_000)) + b" 0\n", b"\n" * 1_000_001
    for content, message in ((long, "has a token of 10000000 characters"), (many, "has more than 1000000 lines")):
        with pytest.raises(CheckpointError, match=rf"tokenizer\.model: {message}"):
            tiktoken.rebuilt(content, FILE, {})


@pytest.mark.parametrize("content", [b"AA== 1\n", b"AA== 0\nAQ== 2\n", b"AA== 0\nAQ== 0\n"])
def test_ranks_with_gaps_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: the ranks of its tokens are not 0, 1, 2"):
        tiktoken.rebuilt(content, FILE, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": {}},
        {"vocab": [{"rank": 0}]},
        {"vocab": [{"rank": 0, "token_bytes": "!"}]},
        {"vocab": {"a": 1}},
        {"vocab": [{"rank": "0", "token_bytes": "AA=="}]},
        {"vocab": [{"rank": 0, "token_bytes": base64.b64encode(bytes(1001)).decode()}]},
        {"config": {"pattern": "("}},
        {"special_tokens": [{"rank": 1, "token_str": "<s>"}]},
        {"special_tokens": ["<s>"]},
        {"config": {"pattern": PATTERN, "default_num_special_tokens": 10**9}},
        {"config": {"pattern": PATTERN, "default_num_special_tokens": 2}},
        {"special_tokens": [{"rank": 0, "token_str": "Ġthe"}], "config": {"pattern": PATTERN}},
    ],
)
def test_damaged_tekken_files_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: "):
        tekken_of(tekken_file(**changes))
