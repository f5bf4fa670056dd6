"""The tokenizer: ids and text, what begins and ends a text, errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

import tiny
from quantkit.errors import CheckpointError, GenerationError, OptionError
from quantkit.generation.text.tokenizer import Tokenizer
from tiny_tokenizers import BYTE_FALLBACK, BYTE_LEVEL, edited, rebuilt

BOS, END_OF_TEXT, TURN, END_OF_TURN = range(4)  # of tiny.SPECIALS
KINDS = {"byte level": Tokenizer(BYTE_LEVEL, "model"), "byte fallback": Tokenizer(BYTE_FALLBACK, "model")}


def test_bos_is_added_to_text_but_not_to_template_output() -> None:
    tokenizer = KINDS["byte level"]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert prompt == "<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(prompt, add_special_tokens=False).count(BOS) == 1
    assert tokenizer.encode("Hi")[0] == BOS
    assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (BOS, True)
    assert (KINDS["byte fallback"].bos_token_id, KINDS["byte fallback"].adds_bos) == (None, False)


def opened(files: dict[str, bytes] = BYTE_LEVEL, /, **contents: Any) -> Tokenizer:
    return Tokenizer(edited(files, **contents), "model")


def post_processor(*, bos: bool, eos: bool) -> dict[str, Any]:
    """A `TemplateProcessing` behind a `ByteLevel`, as Llama 3 has it."""
    begin, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in "be")
    single: list[dict[str, Any]] = [begin] * bos + [{"Sequence": {"id": "A", "type_id": 0}}] + [end] * eos
    tokens = {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in (("b", BOS), ("e", END_OF_TEXT))}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return {"type": "Sequence", "processors": [byte_level, template]}


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("add_eos_token", [{}, {"add_eos_token": False}, {"add_eos_token": True}])
@pytest.mark.parametrize(
    ("bos", "add_bos_token", "expected"),
    [
        (False, {}, []),
        (True, {}, [BOS]),
        (False, {"add_bos_token": True}, [BOS]),
        (True, {"add_bos_token": True}, [BOS]),
        (False, {"add_bos_token": False}, []),
        (True, {"add_bos_token": False}, []),
        (True, {"add_bos_token": None}, [BOS]),
    ],
)
def test_what_begins_a_text_and_that_nothing_ends_it(
    bos: bool, eos: bool, add_bos_token: dict[str, Any], add_eos_token: dict[str, Any], expected: list[int]
) -> None:
    files = rebuilt(post_processor=post_processor(bos=bos, eos=eos))
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", **add_bos_token, **add_eos_token}
    tokenizer = opened(files, tokenizer_config=config)
    assert tokenizer.encode("Hi")[:-2] == tokenizer.encode("") == expected
    assert tokenizer.adds_bos == bool(expected)
    assert tokenizer.encode("Hi", add_special_tokens=False) == tokenizer.encode("Hi")[-2:]


def test_the_bos_is_the_named_one_or_that_of_the_config() -> None:
    names = {"bos_token": "<|im_start|>"}
    assert opened(tokenizer_config=names, config={"bos_token_id": BOS}).bos_token_id == TURN
    for unknown in ({}, {"bos_token": "<no such token>"}, {"bos_token": None}):
        assert opened(tokenizer_config=unknown, config={"bos_token_id": BOS}).bos_token_id == BOS


def test_a_bos_that_no_file_names_is_not_added() -> None:
    tokenizer = opened(rebuilt(post_processor=None), tokenizer_config={"add_bos_token": True}, config={})
    assert len(tokenizer.encode("Hi")) == 2


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_other_post_processors(kind: str) -> None:
    section = {"type": kind, "sep": ["<|end_of_text|>", 1], "cls": ["<|im_start|>", 2]}
    more = {"trim_offsets": True, "add_prefix_space": True} if kind == "RobertaProcessing" else {}
    assert opened(rebuilt(post_processor=section | more)).encode("Hi")[:-2] == [TURN]


def test_an_endless_beginning_is_refused() -> None:
    section = post_processor(bos=True, eos=False)
    section["processors"][1]["single"] = section["processors"][1]["single"][:1] * 10_000
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its post-processor puts 17 tokens before a text"):
        opened(rebuilt(post_processor=section))


def test_special_tokens_can_be_read_as_ordinary_text() -> None:
    tokenizer = KINDS["byte level"]
    text = "<|end_of_text|>a<|im_end|>"
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert ids[0] == BOS
    assert not {BOS, END_OF_TEXT, TURN, END_OF_TURN} & set(ids[1:])
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.encode(text)[1:] == [END_OF_TEXT, *tokenizer.encode("a")[1:], END_OF_TURN]


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_reads_as_a_replacement_character(kind: str) -> None:
    tokenizer = KINDS[kind]
    assert tokenizer.encode("a\ud83db") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("a\udcff") == tokenizer.encode("a\ufffd")  # as Python reads bytes of the command line
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_end_of_text_is_the_union_of_all_declarations() -> None:
    none = {"generation_config": None, "tokenizer_config": None}
    by_text = {END_OF_TEXT, END_OF_TURN}
    assert opened(**none, config={}).eos_token_ids == by_text
    assert opened(**none, config={"eos_token_id": 9}).eos_token_ids == by_text | {9}
    assert opened(
        config={"eos_token_id": [7, 8]},
        generation_config={"eos_token_id": 9},
        tokenizer_config={"eos_token": {"__type": "AddedToken", "content": "<|im_start|>"}},
    ).eos_token_ids == by_text | {7, 8, 9, TURN}
    assert opened(**none, special_tokens_map={"eos_token": "<|im_start|>"}).eos_token_ids == by_text | {TURN}


def test_no_end_of_text_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert opened(rebuilt(BYTE_FALLBACK, added_tokens=[])).eos_token_ids == frozenset()
    assert "no end-of-text token" in caplog.text


def test_settings_that_are_not_applied_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer(edited(generation_config={"eos_token_id": 1, "no_repeat_ngram_size": 3, "num_beams": 1}), "model")
    assert [record.getMessage() for record in caplog.records] == [
        "model/generation_config.json: no_repeat_ngram_size is 3, which quantkit does not apply"
    ]


@pytest.mark.parametrize("name", ["generation_config", "config"])
@pytest.mark.parametrize("wrong", ["2", 2.5, True, -2, [1, "2"], {"id": 2}])
def test_malformed_eos_names_file_and_field(name: str, wrong: object) -> None:
    with pytest.raises(CheckpointError, match=rf"model/{name}\.json: eos_token_id"):
        opened(**{name: {"eos_token_id": wrong}})


def test_sampling_that_the_checkpoint_recommends() -> None:
    recommended = {"temperature": 0.6, "repetition_penalty": 1.1, "eos_token_id": 1}
    assert opened(generation_config=recommended).generation_defaults == {"repetition_penalty": 1.1}
    sampled = opened(generation_config=recommended | {"do_sample": True}).generation_defaults
    assert sampled == {"temperature": 0.6, "top_k": 50, "repetition_penalty": 1.1}


TEMPLATE = "json {{ eos_token }}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template", {"chat_template": TEMPLATE}),
        ("tokenizer_config", {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}),
        ("tokenizer_config", {"chat_template": [{"name": "default", "template": TEMPLATE}], "eos_token": "<|im_end|>"}),
    ],
)
def test_places_of_a_chat_template(name: str, content: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    files = edited(**{name: content})
    assert "<|im_start|>user\nHi" in Tokenizer(files, "model").apply_chat_template(messages)
    del files["chat_template.jinja"]
    assert Tokenizer(files, "model").apply_chat_template(messages) == "json <|im_end|>"


def test_a_byte_order_mark_is_no_part_of_a_template() -> None:
    files = edited()
    files["chat_template.jinja"] = b"\xef\xbb\xbf" + TEMPLATE.encode()
    assert Tokenizer(files, "model").apply_chat_template([{"role": "user", "content": "Hi"}]).startswith("json")


def test_a_chat_template_may_give_ids() -> None:
    tokenizer, messages = KINDS["byte level"], [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True)
    assert ids == tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)
    assert ids[:2] == [BOS, TURN]


def test_options_of_transformers_are_not_passed_over() -> None:
    tokenizer, messages = KINDS["byte level"], [{"role": "user", "content": "Hi"}]
    with pytest.raises(OptionError, match="continue_final_message: is an option of transformers"):
        tokenizer.apply_chat_template(messages, continue_final_message=True)
    assert tokenizer.apply_chat_template(messages, return_tensors=None) == tokenizer.apply_chat_template(messages)


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
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9085657\n"),
        ("tokenizer_config.json", b"{'a': 1}"),
        ("tokenizer_config.json", b""),
        ("tokenizer_config.json", b'{"chat_template": "\\ud800"}'),
        ("special_tokens_map.json", b'{"eos_token": ' + b"[" * 100_000),
        ("added_tokens.json", b"7"),
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


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    with (tmp_path / "added_tokens.json").open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: is larger than"):
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
        assert tokenizer.decode(ids) == visible
    assert tokenizer.eos_token_ids == {0, 2}
    assert not tokenizer.adds_bos
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
