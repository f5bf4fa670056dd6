"""Folders without `tokenizer.json`: whatever vocabulary they hold is found, opened, and packed as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quantkit
import tiny
from quantkit import formats
from quantkit.errors import CheckpointError
from quantkit.formats.vocabularies import with_tokenizer

from . import wire
from .test_ranks import tekken_file, tiktoken_file
from .test_sentencepiece import MODEL


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = quantkit.load_tokenizer(folder(tmp_path, tokenizer__model=MODEL))
    assert tokenizer.encode("abc") == [1, tokenizer.encode("abc", add_special_tokens=False)[0]]
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.decode(tokenizer.encode("abc é 你")) == "abc é 你"


def test_a_tokenizer_model_of_ranks_is_tiktokens(tmp_path: Path) -> None:
    tokenizer = quantkit.load_tokenizer(folder(tmp_path, tokenizer__model=tiktoken_file()))
    assert tokenizer.decode(tokenizer.encode("the thing")) == "the thing"
    assert tokenizer.encode("\x00") == [0]


def test_tekken_counts_before_others(tmp_path: Path) -> None:
    content = json.dumps(tekken_file()).encode()
    tokenizer = quantkit.load_tokenizer(folder(tmp_path, tekken__json=content, tokenizer__model=MODEL))
    assert tokenizer.encode("[INST]") == [1, 3]
    assert tokenizer.encode("[INST]", split_special_tokens=True)[1:] != [3]


def test_vocab_and_merges(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path)
    expected = quantkit.load_tokenizer(tmp_path)
    library = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(library["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, library["model"]["merges"])))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<more>": tiny.VOCAB_SIZE}))
    tokenizer = quantkit.load_tokenizer(tmp_path)
    assert tokenizer.encode("the<more>", add_special_tokens=False)[-1] == tiny.VOCAB_SIZE
    assert tokenizer.decode(expected.encode("the and")) == "the and"


def test_the_config_decides_what_it_says(tmp_path: Path) -> None:
    config = json.dumps({"bos_token": "<s>", "eos_token": "abc", "add_bos_token": False}).encode()
    names = json.dumps({"unk_token": "<unk>"}).encode()
    files = folder(tmp_path, tokenizer__model=MODEL, tokenizer_config__json=config, special_tokens_map__json=names)
    tokenizer = quantkit.load_tokenizer(files)
    assert tokenizer.bos_token_id == 1
    assert tokenizer.encode("abc")[0] != 1
    found = with_tokenizer({path.name: path for path in files.iterdir()}, files)
    assert "tokenizer.json" in found
    assert found["tokenizer_config.json"] == files / "tokenizer_config.json"


def test_what_a_folder_holds_stays_where_there_is_a_tokenizer_json(tmp_path: Path) -> None:
    files = {"tokenizer.json": b"{}", "tokenizer.model": b"damaged"}
    assert with_tokenizer(files, tmp_path) is files
    assert with_tokenizer({}, tmp_path) == {}


def test_packing_writes_a_tokenizer_json(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "model")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(MODEL)
    expected = quantkit.load_tokenizer(source)
    quantkit.convert(source, tmp_path / "packed")
    assert {"tokenizer.json", "tokenizer.model"} <= {path.name for path in (tmp_path / "packed").iterdir()}
    model, tokenizer = quantkit.load(tmp_path / "packed")
    model.close()
    assert tokenizer.encode("abc a") == expected.encode("abc a") == [1, *expected.encode("abc a")[1:]]
    identity = formats.open(source).identity()
    (source / "tokenizer.model").write_bytes(wire.model([("a", 0.0, wire.NORMAL)]))
    assert formats.open(source).identity() != identity


def test_added_tokens_are_found_in_the_text_as_it_is(tmp_path: Path) -> None:
    added = json.dumps({"<more>": 400, "<end>": 401}).encode()
    names = json.dumps({"eos_token": "<end>"}).encode()
    files = folder(tmp_path, tokenizer__model=MODEL, added_tokens__json=added, special_tokens_map__json=names)
    tokenizer = quantkit.load_tokenizer(files)
    ids = tokenizer.encode("a <more> a<more>a<end>", add_special_tokens=False)
    assert ids.count(400) == 2
    assert ids[-1] == 401
    assert 401 in tokenizer.eos_token_ids


@pytest.mark.parametrize(
    ("content", "text"),
    [(MODEL, "abc é"), (tiktoken_file(), "the thing"), (json.dumps(tekken_file()).encode(), "the thing")],
)
def test_a_vocabulary_alone_is_known_by_its_contents(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "some.bin").write_bytes(content)
    tokenizer = quantkit.load_tokenizer(tmp_path / "some.bin")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_ids >= ({2} if content != tiktoken_file() else set())


def test_a_tokenizer_json_alone(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "alone").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    expected = quantkit.load_tokenizer(tmp_path).encode("the and", add_special_tokens=False)
    assert quantkit.load_tokenizer(tmp_path / "alone").encode("the and", add_special_tokens=False) == expected


@pytest.mark.parametrize(
    "content", [b"hello", b"\xff\xfe\xfd", b"\x0b\x01", b"\n\x01\x02", b'{"token_bytes"', b"AA== 0\n!! 1"]
)
def test_a_file_that_is_no_vocabulary_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^[^\n]*some\.bin: "):
        quantkit.load_tokenizer(tmp_path / "some.bin")


def test_an_incomplete_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"merges\.txt is missing: finish the download"):
        quantkit.load_tokenizer(folder(tmp_path / "a", vocab__json=b"{}"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: is no SentencePiece model"):
        quantkit.load_tokenizer(folder(tmp_path / "b", tokenizer__model=b"\xff\xff"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing, and any other vocabulary"):
        quantkit.load_tokenizer(folder(tmp_path / "c"))
