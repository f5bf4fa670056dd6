"""The tokenizer: ids and text, streaming of every byte sequence, stop tokens, errors that name the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

import tiny
from quantkit.errors import CheckpointError, GenerationError, UnsupportedError
from quantkit.generation.text.tokenizer import Tokenizer

BOS, END_OF_TEXT, TURN, END_OF_TURN = range(4)  # of tiny.SPECIALS

# Special tokens are silent and sentencepiece's mark reads as a space: neither comes back as written.
texts = st.text(st.characters(codec="utf-8", exclude_characters="<▁"), max_size=30)


def byte_level() -> dict[str, bytes]:
    """Return the files of tests/tiny.py's byte-level tokenizer."""
    with TemporaryDirectory() as folder:
        tiny.write_tokenizer(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def byte_fallback() -> dict[str, bytes]:
    """Return the files of a tokenizer as sentencepiece models become: Llama 2, Mistral, TinyLlama."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcé", "▁a", "bc", "▁abc"]
    merges = [("▁", "a"), ("b", "c"), ("▁a", "bc")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    return {"tokenizer.json": backend.to_str().encode()}


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
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
@given(ids=st.lists(st.integers(0, tiny.VOCAB_SIZE + 10), max_size=30))
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
    ids = [tokenizer._tokenizer.token_to_id(piece) for piece in pieces]
    assert "".join(streamed(tokenizer, ids)) == text


def test_unknown_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json.*WordPiece"):
        with_decoder(decoders.WordPiece()).detokenizer()


def with_decoder(decoder: decoders.Decoder) -> Tokenizer:
    backend = Backend.from_buffer(BYTE_FALLBACK["tokenizer.json"])
    backend.decoder = decoder
    return Tokenizer({"tokenizer.json": backend.to_str().encode()}, "model")


def test_bos_is_added_to_text_but_not_to_template_output() -> None:
    tokenizer = KINDS["byte level"]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert prompt == "<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(prompt, add_special_tokens=False).count(BOS) == 1
    assert tokenizer.encode("Hi")[0] == BOS
    assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (BOS, True)
    assert (KINDS["byte fallback"].bos_token_id, KINDS["byte fallback"].adds_bos) == (None, False)


def edited(**contents: Any) -> Tokenizer:
    """Return the tiny tokenizer with other JSON files (`config="..."`: config.json; None leaves the file out)."""
    files = dict(BYTE_LEVEL)
    for name, content in contents.items():
        files.pop(f"{name}.json", None)
        if content is not None:
            files[f"{name}.json"] = json.dumps(content).encode()
    return Tokenizer(files, "model")


def test_end_of_text_is_the_union_of_all_declarations() -> None:
    none = {"generation_config": None, "tokenizer_config": None}
    assert edited(**none, config={}).eos_token_ids == {
        END_OF_TEXT,
        END_OF_TURN,
    }  # by name, the latter from the template
    assert edited(**none, config={"eos_token_id": 9}).eos_token_ids == {END_OF_TEXT, END_OF_TURN, 9}
    assert edited(
        config={"eos_token_id": [7, 8]},
        generation_config={"eos_token_id": 9},
        tokenizer_config={"eos_token": {"__type": "AddedToken", "content": "<|im_start|>"}},
    ).eos_token_ids == {END_OF_TEXT, END_OF_TURN, 7, 8, 9, TURN}


def test_end_of_turn_counts_only_where_the_template_writes_it() -> None:
    files = dict(BYTE_LEVEL)
    del files["generation_config.json"], files["tokenizer_config.json"]
    files["chat_template.jinja"] = b"{{ messages[0].content }}"
    assert Tokenizer(files, "model").eos_token_ids == {END_OF_TEXT}


def test_no_end_of_text_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert Tokenizer(BYTE_FALLBACK, "model").eos_token_ids == frozenset()
    assert "no end-of-text token" in caplog.text


@pytest.mark.parametrize("wrong", ["2", 2.5, True, [1, "2"], {"id": 2}])
def test_malformed_eos_names_file_and_field(wrong: object) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        edited(generation_config={"eos_token_id": wrong})


def test_sampling_defaults_count_only_with_do_sample() -> None:
    recommended = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1}
    assert edited(generation_config=recommended).generation_defaults == {}
    sampled = edited(generation_config=recommended | {"do_sample": True}).generation_defaults
    assert sampled == {"temperature": 0.6, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template", {"chat_template": "json {{ eos_token }}"}),
        ("tokenizer_config", {"chat_template": "json {{ eos_token }}", "eos_token": "<|im_end|>"}),
        ("tokenizer_config", {"chat_template": [{"name": "default", "template": "json {{ eos_token }}"}]}),
    ],
)
def test_places_of_a_chat_template(name: str, content: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    files = BYTE_LEVEL | {f"{name}.json": json.dumps({"eos_token": "<|im_end|>"} | content).encode()}
    assert (
        Tokenizer(files, "model").apply_chat_template(messages).startswith("<|begin_of_text|>" if "bos" in name else "")
    )
    del files["chat_template.jinja"]
    assert Tokenizer(files, "model").apply_chat_template(messages) == "json <|im_end|>"


def test_without_a_chat_template() -> None:
    tokenizer = KINDS["byte fallback"]
    assert not tokenizer.has_chat_template
    with pytest.raises(GenerationError, match="model has no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_missing_tokenizer_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer_config.json", b"{'a': 1}"),
        ("generation_config.json", b"[1]"),
        ("config.json", b"\xff\xfe"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    backend = Backend.from_buffer(BYTE_LEVEL["tokenizer.json"])
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer({"tokenizer.json": backend.to_str().encode()}, "model")
    assert len(tokenizer.encode("0123456789")) == 11


@pytest.mark.real
def test_real_tokenizer_gives_the_ids_of_transformers() -> None:
    """SmolLM2's, as transformers 5.23 encodes these texts."""
    tokenizer = Tokenizer.from_folder(os.environ["QUANTKIT_TEST_MODEL"])
    expected = {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "naïve café 北京 👩‍🚀\n": [
            3546,
            46494,
            37366,
            13223,
            230,
            241,
            16736,
            122,
            15107,
            235,
            119,
            321,
            231,
            10813,
            244,
            218,
            198,
        ],
        "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
        "12345 don't  é": [33, 34, 35, 36, 37, 1326, 982, 216, 26411],
    }
    for text, ids in expected.items():
        assert tokenizer.encode(text) == ids
        visible = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
        assert "".join(streamed(tokenizer, ids)) == visible
    assert tokenizer.eos_token_ids == {0, 2}
    assert not tokenizer.adds_bos
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
