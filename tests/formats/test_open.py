"""The door: what a path holds is known by its contents, and what cannot be opened says what it is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import tiny
import tiny_gguf
from quantkit import formats
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.formats.gguf.checkpoint import GGUFSource
from quantkit.formats.magic import HEAD_BYTES, Magic, recognize
from quantkit.formats.packed import PackedModel
from quantkit.formats.safetensors.folder import FolderSource
from quantkit.quantization.conversion import convert

HEADS = {
    b"": Magic.EMPTY,
    b"GGUF\3\0\0\0": Magic.GGUF,
    b"GGUF\3\0\0\0{" + bytes(20): Magic.GGUF,  # of 123 tensors, whose number is an open brace
    b"tjgg\1\0\0\0": Magic.GGML,
    b"PK\3\4\x14\0\0\0\0\0": Magic.PICKLE,
    b"\x80\2}q\0": Magic.PICKLE,
    b"\x80\2\0\0\0\0\0\0{": Magic.SAFETENSORS,  # its header has 640 bytes
    b"\x02\0\0\0\0\0\0\0{}": Magic.SAFETENSORS,
    b"\x03\0\0\0\0\0\0\0\n{}": Magic.SAFETENSORS,
    b"version https://git-lfs.github.com/spec/v1\n": Magic.LFS_POINTER,
    b"<!doctype html>": Magic.WEB_PAGE,
    b"\n <HTML><head>": Magic.WEB_PAGE,
    b"a text": Magic.UNKNOWN,
    bytes(HEAD_BYTES): Magic.UNKNOWN,
}


@pytest.mark.parametrize("head", HEADS)
def test_magic(head: bytes) -> None:
    assert recognize(head[:HEAD_BYTES]) is HEADS[head]


def test_every_kind_has_one_door(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "folder")
    convert(folder, tmp_path / "packed")
    # As Ollama keeps GGUF files, and the Hugging Face cache all of them.
    blob = tiny_gguf.write(tmp_path / "sha256-0123")
    for path, expected in ((folder, FolderSource), (tmp_path / "packed", PackedModel), (blob, GGUFSource)):
        source = formats.open(path)
        assert type(source) is expected
        assert source.path == path
        assert source.config["model_type"] == "llama"
        assert "tokenizer.json" in source.files
        for name in source.names:
            assert source.spec(name).shape == source.tensor(name).shape == source.tensor(name, copy=True).shape
            assert source.tensor(name).data.tobytes() == source.tensor(name, copy=True).data.tobytes()
        assert source.nbytes > 0


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2.")


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "model"])
def test_a_file_of_another_kind_says_what_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    weights = tiny.checkpoint(tmp_path / "folder") / "model.safetensors"
    contents: list[tuple[bytes, type[QuantkitError], str]] = [
        (b"", CheckpointError, "is empty"),
        (b"\x80\4.", UnsupportedError, "is a pickle"),
        (b"hello", CheckpointError, "is of no format that quantkit knows"),
        (b"<html>", CheckpointError, "is a web page"),
        (weights.read_bytes(), CheckpointError, r"name the folder that holds it and config\.json"),
    ]
    for content, error, message in contents:
        path.write_bytes(content)
        with pytest.raises(error, match=message) as caught:
            formats.open(path)
        assert str(caught.value).startswith(f"{path}: ")
    path.unlink()
    write_zip(path)
    with pytest.raises(UnsupportedError, match="is a pickle"):
        formats.open(path)


def test_a_folder_says_what_its_weights_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_of()))
    tiny_gguf.write(tmp_path / "tiny-gguf")
    with pytest.raises(CheckpointError, match=r"holds GGUF files; name one of them, such as .*tiny-gguf"):
        formats.open(tmp_path)
    write_zip(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match=r"pickles \(pytorch_model\.bin\)"):
        formats.open(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nothing", "link", "loop", "a\0b"):
        with pytest.raises(CheckpointError, match=r"no such file|cannot be read|is not a path"):
            formats.open(tmp_path / name)
