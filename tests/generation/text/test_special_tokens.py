"""Special tokens in all the files that declare them: names, ids and flags as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tiny
from quantkit.errors import CheckpointError
from quantkit.formats.vocabularies.end_tokens import END_TOKENS
from quantkit.generation.text.tokenizer import Tokenizer
from tiny_tokenizers import BYTE_LEVEL, edited, rebuilt

BOS, END_OF_TEXT, TURN, END_OF_TURN = range(4)  # of tiny.SPECIALS
NEXT = tiny.VOCAB_SIZE  # the first id that tokenizer.json does not have
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
SPELLED = "a<x><img>the"


class Case(NamedTuple):
    files: dict[str, Any]
    tokens: dict[str, int]  # of SPELLED, those that are one token
    names: dict[str, str]
    silent: tuple[str, ...] = ()


CASES = {
    "added_tokens_decoder": Case(
        {"tokenizer_config": {**CONFIG, "added_tokens_decoder": {NEXT: {"content": "<x>", **FLAGS, "special": True}}}},
        {"<x>": NEXT},
        NAMES,
        silent=("<x>",),
    ),
    "a token that is not special": Case(
        {"tokenizer_config": {**CONFIG, "added_tokens_decoder": {NEXT: {"content": "<x>", **FLAGS, "special": False}}}},
        {"<x>": NEXT},
        NAMES,
    ),
    "added_tokens.json": Case({"added_tokens": {"<x>": NEXT}}, {"<x>": NEXT}, NAMES),
    "added_tokens.json, special": Case(
        {"added_tokens": {"<x>": NEXT}, "special_tokens_map": {"additional_special_tokens": ["<x>"]}},
        {"<x>": NEXT},
        NAMES,
        silent=("<x>",),
    ),
    "special_tokens_map.json alone": Case(
        {
            "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
            "special_tokens_map": {
                "bos_token": {"content": "<|begin_of_text|>", **FLAGS},
                "eos_token": "<|im_end|>",
                "image_token": "<img>",
            },
        },
        {"<img>": NEXT},
        NAMES | {"image_token": "<img>"},
        silent=("<img>",),
    ),
    "special_tokens_map.json before tokenizer_config.json": Case(
        {"special_tokens_map": {"eos_token": "<|end_of_text|>"}}, {}, NAMES | {"eos_token": "<|end_of_text|>"}
    ),
    "tokenizer_config.json with added_tokens_decoder before special_tokens_map.json": Case(
        {
            "tokenizer_config": {**CONFIG, "added_tokens_decoder": {}},
            "special_tokens_map": {"eos_token": "<|end_of_text|>"},
        },
        {},
        NAMES,
    ),
    "extra_special_tokens with names": Case(
        {"tokenizer_config": {**CONFIG, "extra_special_tokens": {"image_token": "<img>", "turn": "<|im_start|>"}}},
        {"<img>": NEXT},
        NAMES | {"image_token": "<img>", "turn": "<|im_start|>"},
        silent=("<img>",),
    ),
    "extra_special_tokens without names": Case(
        {"tokenizer_config": {**CONFIG, "extra_special_tokens": ["<img>"]}}, {"<img>": NEXT}, NAMES, silent=("<img>",)
    ),
    "additional_special_tokens": Case(
        {
            "tokenizer_config": {
                **CONFIG,
                "additional_special_tokens": ["<img>", {"content": "<x>", "__type": "AddedToken", **FLAGS}],
            }
        },
        {"<img>": NEXT, "<x>": NEXT + 1},
        NAMES,
        silent=("<img>", "<x>"),
    ),
    "a name of this model": Case(
        {"tokenizer_config": {**CONFIG, "image_token": "<img>"}},
        {"<img>": NEXT},
        NAMES | {"image_token": "<img>"},
        silent=("<img>",),
    ),
    "null is no name": Case(
        {"tokenizer_config": {**CONFIG, "pad_token": None, "unk_token": None}}, {}, NAMES
    ),
}  # fmt: skip


def files_of(case: Case) -> dict[str, bytes]:
    return edited(config={"model_type": "llama", "vocab_size": NEXT + 8}, generation_config=None, **case.files)


def expected_ids(case: Case, plain: Any) -> list[int]:
    """The ids of SPELLED: `plain` for the text between the tokens of the case."""
    parts = [SPELLED]
    for token in case.tokens:
        parts = [piece for part in parts for piece in split(part, token)]
    return [number for part in parts for number in ([case.tokens[part]] if part in case.tokens else plain(part))]


def split(text: str, token: str) -> list[str]:
    before, found, behind = text.partition(token)
    return [piece for piece in (before, found, behind) if piece]


@pytest.mark.parametrize("name", CASES)
def test_declared_tokens(name: str) -> None:
    case, original = CASES[name], Tokenizer(BYTE_LEVEL, "model")
    tokenizer = Tokenizer(files_of(case), "model")
    ids = tokenizer.encode(SPELLED, add_special_tokens=False)
    assert ids == expected_ids(case, lambda text: original.encode(text, add_special_tokens=False))
    heard = SPELLED
    for token in case.silent:
        heard = heard.replace(token, "")
    detokenizer = tokenizer.detokenizer()
    assert tokenizer.decode(ids) == "".join(map(detokenizer.add, ids)) + detokenizer.finish() == heard
    assert tokenizer.bos_token_id == BOS
    assert {tokenizer.encode(case.names["eos_token"], add_special_tokens=False)[0]} <= tokenizer.eos_token_ids


@pytest.mark.parametrize("name", CASES)
def test_names_reach_the_template(name: str) -> None:
    case = CASES[name]
    written = "".join(f"{{{{ {variable} }}}};" for variable in case.names)
    files = files_of(case) | {"chat_template.jinja": f"{written}{{{{ pad_token is defined }}}}".encode()}
    prompt = Tokenizer(files, "model").apply_chat_template([{"role": "user", "content": "a"}])
    assert prompt == "".join(f"{text};" for text in case.names.values()) + "False"


def test_unnamed_tokens_reach_the_template_as_a_list() -> None:
    files = edited(tokenizer_config={**CONFIG, "additional_special_tokens": ["<a>", "<b>"]})
    files["chat_template.jinja"] = b"{{ additional_special_tokens[1] }}"
    assert Tokenizer(files, "model").apply_chat_template([{"role": "user", "content": "a"}]) == "<b>"


@pytest.mark.live
@pytest.mark.parametrize("name", CASES)
def test_transformers_agrees(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for file, content in files_of(CASES[name]).items():
        (tmp_path / file).write_bytes(content)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode(SPELLED, add_special_tokens=False) == theirs.encode(SPELLED, add_special_tokens=False)
    assert theirs.special_tokens_map == CASES[name].names


def with_ids(ids: dict[str, Any]) -> Tokenizer:
    return Tokenizer(edited(added_tokens=ids), "model")


def test_an_added_token_keeps_its_id_behind_a_gap() -> None:
    tokenizer = with_ids({"<x>": NEXT + 5, "<y>": NEXT + 6})
    assert tokenizer.encode("<x><y>", add_special_tokens=False) == [NEXT + 5, NEXT + 6]
    assert tokenizer.decode([NEXT, NEXT + 4, NEXT + 5]) == "<x>"
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(token) for token in (NEXT, NEXT + 4, NEXT + 5)] == ["", "", "<x>"]


def test_an_added_token_with_the_id_of_another_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert len(with_ids({"<x>": 7}).encode("<x>", add_special_tokens=False)) == 3
    assert "the id 7 of '<x>' is another token's" in caplog.text


@pytest.mark.parametrize("token", [-1, 2.0, "7", None, True, 10**200, NEXT + 100_000])
def test_impossible_ids_name_the_file(token: object) -> None:
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: '<x>' has the id "):
        with_ids({"<x>": token})


@pytest.mark.parametrize(
    "decoder",
    [
        7,
        [],
        {"x": {"content": "<x>"}},
        {"-1": {"content": "<x>"}},
        {"9999999999": {"content": "<x>"}},
        {"320": "<x>"},
        {"320": {"content": ""}},
        {"320": {"content": 7}},
    ],
)
def test_malformed_decoders_name_the_file(decoder: object) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: added_tokens_decoder has a malformed entry"):
        Tokenizer(edited(tokenizer_config={"added_tokens_decoder": decoder}), "model")


def test_a_named_token_without_an_id_and_a_row_is_ordinary_text() -> None:
    files = edited(config={"vocab_size": NEXT}, tokenizer_config={**CONFIG, "pad_token": "[PAD]"})
    assert len(Tokenizer(files, "model").encode("[PAD]", add_special_tokens=False)) == 5


@pytest.mark.parametrize("marked", [None, False, True])
@pytest.mark.parametrize("text", END_TOKENS)
def test_what_ends_a_turn_by_its_text_is_one_silent_token(text: str, marked: bool | None) -> None:
    content = json.loads(BYTE_LEVEL["tokenizer.json"])
    vocab = {text if token == "<|im_end|>" else token: number for token, number in content["model"]["vocab"].items()}
    added = [
        {**entry, "content": text, "special": marked} if entry["content"] == "<|im_end|>" else entry
        for entry in content["added_tokens"]
        if entry["content"] != "<|im_end|>" or marked is not None
    ]
    files = rebuilt(model={**content["model"], "vocab": vocab}, added_tokens=added)
    tokenizer = Tokenizer(edited(files, tokenizer_config=None, generation_config=None), "model")
    assert END_OF_TURN in tokenizer.eos_token_ids
    assert tokenizer.encode(f"a{text}", add_special_tokens=False)[1:] == [END_OF_TURN]
    assert tokenizer.decode([END_OF_TURN]) == tokenizer.detokenizer().add(END_OF_TURN) == ""


def test_flags_of_a_token_stay_when_it_is_marked() -> None:
    decoder = {str(END_OF_TURN): {"content": "<|im_end|>", **FLAGS, "rstrip": True, "special": False}}
    tokenizer = Tokenizer(edited(tokenizer_config={**CONFIG, "added_tokens_decoder": decoder}), "model")
    assert tokenizer.encode("<|im_end|>  \n<|im_start|>", add_special_tokens=False) == [END_OF_TURN, TURN]
