"""SentencePiece's models: bytes typed by hand, how spaces and pieces of each kind are read, and damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nasty_strings import NASTY
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.formats.vocabularies import sentencepiece
from quantkit.formats.vocabularies.protobuf import fields, signed
from tiny_tokenizers import BYTE_FALLBACK

from . import wire
from .wire import BYTES, NORMAL, USER_DEFINED

FILE = Path("model/tokenizer.model")
WORDS = [("▁", -9.0, NORMAL), *((letter, -9.0, NORMAL) for letter in "abcé")]
JOINED = [("▁a", -1.0, NORMAL), ("bc", -2.0, NORMAL), ("▁abc", -3.0, NORMAL)]
MODEL = wire.model([*BYTES, *WORDS, *JOINED])

TYPED = bytes.fromhex(
    "0a0e"  # field 1, 14 bytes: a piece
    "0a053c756e6b3e"  # its field 1, 5 bytes: <unk>
    "1500000000"  # its field 2, a float: 0
    "1802"  # its field 3: unknown
    "0a0a 0a03e29681 15000080bf"  # ▁, -1
    "0a08 0a0161 15000000c0"  # a, -2
    "0a0b 0a04e2968161 15 000000bf"  # ▁a, -0.5
    "1217"  # field 2, 23 bytes: the trainer
    "1802"  # its field 3: BPE
    "c802ffffffffffffffffff01"  # its field 41, no BOS: -1
    "d00200"  # its field 42, EOS: 0
    "d80200 c00200"  # fields 43 and 40: 0
    "1a02 2000"  # field 3, 2 bytes: the normalizer, whose field 4 keeps white space
)


def opened(content: bytes = MODEL, **config: Any) -> Tokenizer:
    return sentencepiece.rebuilt(content, FILE, config).tokenizer


def pieces(text: str, content: bytes = MODEL, **config: Any) -> list[str]:
    return list(opened(content, **config).encode(text, add_special_tokens=False).tokens)


def test_bytes_typed_by_hand() -> None:
    tokenizer, named = sentencepiece.rebuilt(TYPED, FILE, {})
    assert tokenizer.encode("a a").ids == [3, 3]
    assert tokenizer.encode("aa").ids == [3, 2]
    assert tokenizer.encode(" xy").ids == [1, 1, 0]
    assert named == {"unk_token": "<unk>", "eos_token": "<unk>", "pad_token": "<unk>"}


def test_fields_of_a_message() -> None:
    assert list(fields(bytes.fromhex("089601"))) == [(1, 150)]
    assert list(fields(bytes.fromhex("120774657374696e67"))) == [(2, b"testing")]
    assert list(fields(bytes.fromhex("19 0100000000000000 25 0200 0000"))) == [(3, b"\1" + bytes(7)), (4, b"\2\0\0\0")]
    assert signed(2**64 - 1) == -1
    for damaged in ("08", "0896", "1207", "12ff", "0b", "08" + "ff" * 10, "1a0500"):
        with pytest.raises(ValueError, match=r"cut short|no field is of kind"):
            list(fields(bytes.fromhex(damaged)))


def test_equals_the_same_tokenizer_as_json() -> None:
    ours, expected = opened(), Tokenizer.from_str(BYTE_FALLBACK["tokenizer.json"].decode())
    for text in NASTY:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == expected.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)


def test_text_begins_with_bos() -> None:
    assert opened().encode("a").tokens == ["<s>", "▁a"]


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        ("abc a", {}, ["▁abc", "▁a"]),
        (" a", {}, ["▁", "▁a"]),
        ("a</s>a", {}, ["▁a", "</s>", "▁a"]),
        ("a</s>a", {"legacy": False}, ["▁a", "</s>", "a"]),
        ("a</s> a", {"legacy": False}, ["▁a", "</s>", "▁a"]),
        ("a a", {"add_prefix_space": False}, ["a", "▁a"]),
        ("a\n", {}, ["▁a", "<0x0A>"]),
    ],
)
def test_spaces(text: str, config: dict[str, Any], expected: list[str]) -> None:
    assert pieces(text, **config) == expected


def test_white_space_is_removed_where_the_model_says_so() -> None:
    model = wire.model([*BYTES, *WORDS, *JOINED], normalizer=wire.number(4, True))
    assert pieces("  a   bc ", model) == ["▁a", "▁", "bc"]


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_that_users_defined_are_taken_whole(prefix: bool) -> None:
    defined = [("<x>", 0.0, USER_DEFINED), ("bca", 0.0, USER_DEFINED), ("▁▁", 0.0, USER_DEFINED)]
    model = wire.model([*BYTES, *WORDS, *JOINED, *defined], prefix=prefix)
    first = ["▁"] if prefix else []
    assert pieces("<x>bcabc", model) == [*first, "<x>", "bca", "bc"]
    assert pieces("a  a", model) == [*(["▁a"] if prefix else ["a"]), "▁▁", "a"]
    tokenizer = opened(model)
    tokenizer.encode_special_tokens = True
    for spelled in ("<s>", "</s>", "<0x0A>"):  # are not those tokens when a text spells them
        assert spelled not in tokenizer.encode(spelled, add_special_tokens=False).tokens


def test_unigram_takes_the_likeliest_pieces() -> None:
    found = [("▁", -4.0, NORMAL), ("a", -4.0, NORMAL), ("b", -4.0, NORMAL), ("▁a", -5.0, NORMAL), ("ab", -3.0, NORMAL)]
    model = wire.model(found, kind=wire.UNIGRAM)
    assert pieces("ab", model) == ["▁", "ab"]
    assert pieces("aab", model) == ["▁a", "ab"]
    assert pieces("c", model) == ["▁", "c"]
    assert opened(model).encode("c").ids == [1, 3, 0]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", CheckpointError, "has no pieces"),
        (b"not a model at all", CheckpointError, "is no SentencePiece model"),
        (wire.model([("a", 0.0, NORMAL), ("a", 0.0, NORMAL)]), CheckpointError, "one of them twice"),
        (wire.model(WORDS, kind=wire.WORD), UnsupportedError, "are words or characters"),
        (wire.model(WORDS, trainer=wire.number(24, 1)), UnsupportedError, "do not begin with their spaces"),
        (wire.model(WORDS, normalizer=wire.number(5, 0)), UnsupportedError, "do not begin with their spaces"),
        (wire.model(WORDS, normalizer=wire.text(2, b"\xff\xff")), CheckpointError, "make no tokenizer"),
        (wire.model([("a" * 1001, 0.0, NORMAL)]), CheckpointError, "has a token of 1001 characters"),
        (wire.number(1, 5), CheckpointError, "is no message"),
        (wire.text(1, wire.text(1, b"\xff")), CheckpointError, "is no SentencePiece model"),
    ],
)
def test_refusals_name_file_and_cause(content: bytes, error: type[QuantkitError], message: str) -> None:
    with pytest.raises(error, match=rf"tokenizer\.model: .*{message}"):
        opened(content)


def test_damaged_files_end_in_one_line() -> None:
    said = []
    for cut in range(0, len(MODEL), 97):
        for content in (MODEL[:cut], MODEL[:cut] + b"\xff" + MODEL[cut + 1 :], MODEL[:cut] + MODEL[cut + 3 :]):
            try:
                opened(content).encode("a bc\n")
            except QuantkitError as error:
                said.append(str(error))
    assert len(said) > 50
    assert all("tokenizer.model: " in line and "\n" not in line for line in said)
