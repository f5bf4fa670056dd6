"""A plan: reasons, notices, and what a strict conversion refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tiny_gguf
from golden import generate as golden
from quantkit import StrictError, convert
from quantkit.formats.safetensors.file import SafetensorsFile


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the tensors of a checkpoint: name -> (dtype, array)."""
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: (entry.dtype, file.array(name, copy=True)) for name, entry in file.header.items()}
    change(tensors)
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def with_config(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_a_head_of_its_own(folder: Path) -> Path:
    return with_config(folder, tie_word_embeddings=True)


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def without_o_proj_bias(folder: Path) -> Path:
    biased = tiny.checkpoint(folder, attention_bias=True)
    return rewritten(biased, lambda it: [it.pop(name) for name in list(it) if name.endswith("o_proj.bias")])


def without_end(folder: Path) -> Path:
    with_config(folder, eos_token_id=None)
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"added_tokens": [], "post_processor": None}
    tokenizer["model"]["vocab"] = {f"{text}?" if n < 4 else text: n for text, n in tokenizer["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def gguf_without_pre_tokenizer(folder: Path) -> Path:
    return tiny_gguf.write(folder / "model.gguf", {"tokenizer.ggml.pre": None})


def gguf_with_an_unknown_key(folder: Path) -> Path:
    return tiny_gguf.write(folder / "model.gguf", {"llama.colour": (3, tiny_gguf.U32)})


FALLBACKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a tensor too many": (
        lambda it: rewritten(it, lambda tensors: tensors.update({"adapter.weight": ("F32", np.zeros(2, np.float32))})),
        "the model does not use tensor 'adapter.weight'; left out",
    ),
    "a head that is not tied": (with_a_head_of_its_own, "they are not tied, though the configuration says so"),
    "no tokenizer": (lambda it: without(it, "tokenizer.json"), "has no tokenizer.json"),
    "an unknown field": (lambda it: with_config(it, colour="red"), "config.json: unknown fields are ignored: colour"),
    "a missing bias": (without_o_proj_bias, "'model.layers.0.self_attn.o_proj.bias' and 1 more"),
    "no end of text": (without_end, "declares no end-of-text token"),
    "a GGUF file without a pre-tokenizer": (gguf_without_pre_tokenizer, "names no pre-tokenizer"),
    "a GGUF file with a key too many": (gguf_with_an_unknown_key, "unknown keys of its metadata are ignored: colour"),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_strict_refuses_what_is_left_out_or_made_up(tmp_path: Path, case: str) -> None:
    change, words = FALLBACKS[case]
    source = change(tiny.checkpoint(tmp_path / "source"))
    before = os.listdir(tmp_path)
    report = convert(source, tmp_path / "out", dry_run=True)
    assert len(report.notices) == 1
    assert words in report.notices[0]
    with pytest.raises(StrictError) as caught:
        convert(source, tmp_path / "out", strict=True)
    said = report.notices[0].removeprefix(f"{source}: ")
    assert str(caught.value) == f"{source}: refused by --strict: {said}"
    assert os.listdir(tmp_path) == before


def test_one_error_lists_all(tmp_path: Path) -> None:
    source = without(with_config(tiny.checkpoint(tmp_path / "source"), colour="red"), "tokenizer.json")
    with pytest.raises(
        StrictError, match=r"--strict: \(1\) config\.json: unknown .*colour; \(2\) .* no tokenizer\.json"
    ):
        convert(source, tmp_path / "out", strict=True)


@pytest.mark.parametrize("case", tiny.FAMILIES)
def test_of_a_whole_checkpoint_nothing_is_left_out(tmp_path: Path, case: str) -> None:
    """Fields of a config.json that no table knows are the one thing that published models may have."""
    report = convert(golden.checkpoint(tmp_path / "source", case), tmp_path / "out", dry_run=True)
    assert all(message.startswith("config.json: unknown fields are ignored: ") for message in report.notices)


def test_a_whole_checkpoint_passes_strictly(tmp_path: Path) -> None:
    report = convert(tiny.checkpoint(tmp_path / "source"), tmp_path / "out", strict=True)
    assert (report.notices, report.unused) == ((), ())
