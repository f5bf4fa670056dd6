"""Tokenizers rebuilt from GGUF metadata give the tokens that the model's own tokenizer gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

import tiny
from nasty_strings import NASTY
from quantkit.errors import CheckpointError
from quantkit.formats.gguf.file import GGUFFile
from quantkit.formats.gguf.tokenizer import tokenizer_files
from quantkit.formats.vocabularies.merges import merges_of_scores
from quantkit.formats.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from tiny_gguf import ARRAY, BOOL, TEXT, U32, Changes, metadata, write

TOKENS: list[str] = metadata()["tokenizer.ggml.tokens"][0]


def rebuilt(folder: Path, changes: Changes | None = None) -> Tokenizer:
    files = tokenizer_files(GGUFFile(write(folder / "tiny.gguf", changes, tensors={})))
    return Tokenizer.from_str(files["tokenizer.json"].decode())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The rebuilt tokenizer and the one it was rebuilt from."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return rebuilt(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\tthe'sand12.<|_>im"))
def test_equals_the_original(text: str, pair: tuple[Tokenizer, Tokenizer]) -> None:
    ours, original = pair
    for special in (True, False):
        assert (
            ours.encode(text, add_special_tokens=special).ids == original.encode(text, add_special_tokens=special).ids
        )
    ids = original.encode(text).ids
    assert ours.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


def test_special_tokens_are_found_in_text(pair: tuple[Tokenizer, Tokenizer]) -> None:
    ours, original = pair
    text = "<|im_start|>user\nthe and<|im_end|>"
    ids = ours.encode(text).ids
    assert ids == original.encode(text).ids
    assert ids[:2] == [0, 2]
    assert ids[-1] == 3
    assert ours.decode(ids) == "user\nthe and"


def test_user_defined_tokens_are_kept_in_the_text(tmp_path: Path) -> None:
    types = [4 if number == 2 else 1 for number in range(len(TOKENS))]
    tokenizer = rebuilt(tmp_path, {"tokenizer.ggml.token_type": (types, ARRAY)})
    ids = tokenizer.encode("the<|im_start|>", add_special_tokens=False).ids
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == "the<|im_start|>"


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_end_of_a_turn_is_known_by_its_text(kind: int, tmp_path: Path) -> None:
    types = [kind if number == 3 else 1 for number in range(len(TOKENS))]
    path = write(tmp_path / "tiny.gguf", {"tokenizer.ggml.token_type": (types, ARRAY)}, tensors={})
    files = tokenizer_files(GGUFFile(path))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    ids = tokenizer.encode("the<|im_end|>", add_special_tokens=False).ids
    assert ids[-1] == 3
    assert tokenizer.decode(ids) == "the"
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [1, 3]


@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        ({"tokenizer.ggml.add_bos_token": (False, BOOL)}, [], []),
        ({"tokenizer.ggml.add_bos_token": None}, [], []),
        ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": ("llama-bpe", TEXT)}, [0], []),
        ({"tokenizer.ggml.add_eos_token": (True, BOOL)}, [0], [1]),
        ({"tokenizer.ggml.bos_token_id": None}, [], []),
        ({"tokenizer.ggml.tokens": ([":b:", *TOKENS[1:]], ARRAY)}, [0], []),
    ],
)
def test_added_tokens(changes: dict[str, Any], first: list[int], last: list[int], tmp_path: Path) -> None:
    tokenizer = rebuilt(tmp_path, changes)
    bare = tokenizer.encode("the one", add_special_tokens=False).ids
    assert tokenizer.encode("the one").ids == [*first, *bare, *last]
    assert tokenizer.encode("the", "the").ids[: len(first)] == first


def test_whole_words_are_not_merged(tmp_path: Path) -> None:
    """With `ignore_merges` a piece that is a token is that token, even where merging would not lead to it."""
    tokens = [*TOKENS, "zebra"]
    changes = {"tokenizer.ggml.tokens": (tokens, ARRAY), "tokenizer.ggml.token_type": None}
    assert len(rebuilt(tmp_path, changes).encode("zebra", add_special_tokens=False)) > 1
    whole = rebuilt(tmp_path, {**changes, "tokenizer.ggml.pre": ("llama-bpe", TEXT)})
    assert whole.encode("zebra", add_special_tokens=False).ids == [len(TOKENS)]


# Pieces typed by hand from what the models' own tokenizers do; Ġ is a space, Ċ a line feed.
SPLITS = {
    "gpt-2": ("I'll pay  $1234,\n\nok", ["I", "'ll", "Ġpay", "Ġ", "Ġ$", "1234", ",", "Ċ", "Ċ", "ok"]),
    "smollm": ("in 1972,\n\n  x", ["in", "Ġ", "1", "9", "7", "2", ",", "ĊĊĠ", "Ġx"]),
    "llama-bpe": ("I'LL pay  $1234,\n\nok", ["I", "'LL", "Ġpay", "Ġ", "Ġ$", "123", "4", ",ĊĊ", "ok"]),
    "qwen2": ("I'LL pay  $12,\n\nok", ["I", "'LL", "Ġpay", "Ġ", "Ġ$", "1", "2", ",ĊĊ", "ok"]),
    "tekken": ("HelloWorld I'm 12/\n", ["Hello", "World", "ĠI", "'m", "Ġ", "1", "2", "/Ċ"]),
    "default": ("a=b 12345 x", ["a", "=", "b", "Ġ", "123", "45", "Ġx"]),
    "deepseek-coder": ("x = 12\n", ["x", "Ġ=Ġ", "1", "2", "Ċ"]),
    "gpt-4o": ("HelloWorld I'm 1234", ["Hello", "World", "ĠI'm", "Ġ", "123", "4"]),
    "qwen35": ("e\u0301a 12", ["eÌģa", "Ġ", "1", "2"]),
    "deepseek-v3": ("(see 1234)  x", ["(see", "Ġ", "123", "4", ")", "Ġ", "Ġx"]),
    "falcon": ("a=`b` 12345", ["a", "=`", "b", "`", "Ġ", "123", "45"]),
    "tiny_aya": ("1234567 ab", ["1", "234", "567", "Ġab"]),
    "glm4": ("in 12345", ["in", "Ġ", "123", "45"]),
    "bloom": ("a b, c.", ["a", "Ġb", ",", "Ġc", "."]),
    "exaone-moe": ("two words 12", ["twoĠwords", "Ġ", "1", "2"]),
    "seed-coder": ("a +\n\nb", ["a", "Ġ+", "ĊĊ", "b"]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits(name: str, tmp_path: Path) -> None:
    text, pieces = SPLITS[name]
    splitter = rebuilt(tmp_path, {"tokenizer.ggml.pre": (name, TEXT)}).pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == pieces


DIFFERENT = {pre_tokenizer: name for name, pre_tokenizer in PRE_TOKENIZERS.items()}


@pytest.mark.parametrize("name", DIFFERENT.values())
def test_every_pre_tokenizer_keeps_the_text(name: str, tmp_path: Path) -> None:
    tokenizer = rebuilt(tmp_path, {"tokenizer.ggml.pre": (name, TEXT)})
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=50)
@given(text=st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Z", "Cc"])))
def test_smollm_is_digits_then_gpt2(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """SmolLM's tokenizer.json spells its split with the library's `Digits` and `ByteLevel`."""
    published = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = rebuilt(tmp_path_factory.getbasetemp(), {"tokenizer.ggml.pre": ("smollm", TEXT)}).pre_tokenizer
    assert ours.pre_tokenize_str(text) == published.pre_tokenize_str(text)


def test_no_pre_tokenizer_is_the_default_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = rebuilt(tmp_path, {"tokenizer.ggml.pre": None})
    assert "names no pre-tokenizer" in caplog.text
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("12345")] == ["123", "45"]


PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", "c", *(f"<0x{byte:02X}>" for byte in range(256))]
"""In the order of their scores, the lowest last."""


def pieces(**changes: Any) -> Changes:
    """Metadata of a tokenizer in SentencePiece's way; keys without their prefix, a dot as `__`."""
    types = [2, 3, 3, *[1] * 6, *[6] * 256]
    found: dict[str, Any] = {
        "model": ("llama", TEXT),
        "pre": ("default", TEXT),
        "tokens": (PIECES, ARRAY),
        "token_type": (types, ARRAY),
        "scores": ([0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -1.0, -2.0, -10.0, *[0.0] * 256], ARRAY),
        "merges": None,
        "add_bos_token": None,
        "bos_token_id": None,
        "eos_token_id": None,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.tokens": None}, "has no list tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "has no list tokenizer.ggml.merges"),
        ({"tokenizer.ggml.tokens": ([*TOKENS[:-1], TOKENS[0]], ARRAY)}, "names a token twice"),
        ({"tokenizer.ggml.token_type": ([1, 1], ARRAY)}, "320 tokens but 2 token types"),
        ({"tokenizer.ggml.token_type": (["a"] * 320, ARRAY)}, "token_type is not an array"),
        (pieces(scores=None), "scores is not an array of numbers"),
        (pieces(scores=([1.0, 2.0], ARRAY)), "265 tokens but 2 scores"),
        (pieces(model=("gemma4", TEXT)), "has no list tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": (["no such"], ARRAY)}, "merges do not fit its tokens"),
        ({"tokenizer.ggml.bos_token_id": (320, U32)}, "bos_token_id 320 is not one of its 320 tokens"),
        ({"tokenizer.ggml.eos_token_id": ("one", TEXT)}, "eos_token_id is not of type int"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        rebuilt(tmp_path, changes)


def test_merges_of_scores() -> None:
    texts, scores = ["a", "b", "ab", "abb", "bb"], [-4.0, -5.0, -2.0, -1.0, -3.0]
    assert merges_of_scores(texts, scores) == [("a", "bb"), ("ab", "b"), ("a", "b"), ("b", "b")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ["▁a", "b"]),  # `▁a` has a higher score than `ab`
        ("bab", ["▁", "b", "ab"]),
        ("a\u00e9", ["▁a", "<0xC3>", "<0xA9>"]),
        ("a  a", ["▁a", "▁", "▁a"]),
        ("</s>ab", ["</s>", "▁a", "b"]),  # a text that follows a special token begins anew
        ("", []),
    ],
)
def test_sentencepiece(text: str, expected: list[str], tmp_path: Path) -> None:
    tokenizer = rebuilt(tmp_path, pieces())
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["<s>", *expected]
    assert tokenizer.decode(encoded.ids) == text.removeprefix("</s>")
    unprefixed = rebuilt(tmp_path, pieces(add_space_prefix=(False, BOOL), add_bos_token=(False, BOOL)))
    assert unprefixed.encode("ab").tokens == ["ab"]


def test_merges_in_sentencepiece_s_spelling(tmp_path: Path) -> None:
    """Gemma 4: no space before a text, BOS whatever the file says, merges within lines."""
    merges = (["▁ a", "a b"], ARRAY)
    changes = pieces(model=("gemma4", TEXT), merges=merges, add_bos_token=(False, BOOL), bos_token_id=(1, U32))
    tokenizer = rebuilt(tmp_path, changes)
    assert tokenizer.encode("ab a\nb").tokens == ["<s>", "ab", "▁a", "<0x0A>", "b"]


def test_white_space_behind_special_tokens_of_phi_3(tmp_path: Path) -> None:
    kept = rebuilt(tmp_path, pieces())
    stripped = rebuilt(tmp_path, {**pieces(), "general.name": ("Phi-3 mini", TEXT)})
    assert kept.encode("</s> \na").tokens == ["<s>", "</s>", "▁", "▁", "<0x0A>", "a"]
    assert stripped.encode("</s> \na").ids == [1, 2, PIECES.index("▁a")]


def test_tokens_without_text_have_names(tmp_path: Path) -> None:
    types = [3, *[1] * (len(TOKENS) - 1)]
    merges = metadata()["tokenizer.ggml.merges"][0][:-1]
    changes = {"tokenizer.ggml.tokens": (["", *TOKENS[1:-1], ""], ARRAY), "tokenizer.ggml.merges": (merges, ARRAY)}
    tokenizer = rebuilt(tmp_path, changes | {"tokenizer.ggml.token_type": (types, ARRAY)})
    assert tokenizer.id_to_token(0) == "[EMPTY_0]"
    assert tokenizer.id_to_token(len(TOKENS) - 1) == f"[EMPTY_{len(TOKENS) - 1}]"


def test_without_a_chat_template(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", {"tokenizer.chat_template": None}, tensors={})
    files = tokenizer_files(GGUFFile(path))
    assert sorted(files) == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads(files["tokenizer_config.json"])["tokenizer_class"] == "PreTrainedTokenizerFast"
