"""Where a config and a checkpoint's tensors meet: matrices that are tied, or only said to be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from golden.generate import checkpoint as golden_checkpoint
from golden.generate import transformers_logits
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.formats import packed
from quantkit.generation.loading import load_model
from quantkit.quantization.conversion import convert

PROMPT = [3, 1, 4, 1, 5]


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(path, threads=1, kv_dtype="f32")
    try:
        return model(PROMPT)
    finally:
        model.close()


def checkpoint(folder: Path, *, tied: bool, head: str) -> Path:
    """A checkpoint with a head of its own, a copy of the embedding as head, or none."""
    tiny.checkpoint(folder, dtype="F32", tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tiny.shapes(config | {"tie_word_embeddings": head == "none"})
    tensors = {name: tiny.weight(name, shape) for name, shape in shapes.items()}
    if head == "copy":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tiny.write_safetensors(folder / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()})
    return folder


def test_a_second_copy_of_a_tied_matrix_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twice = checkpoint(tmp_path / "twice", tied=True, head="copy")
    once = checkpoint(tmp_path / "once", tied=True, head="none")
    np.testing.assert_array_equal(logits(twice), logits(once))
    assert convert(twice, tmp_path / "packed").unused == ()
    assert "lm_head.weight" not in packed.PackedModel(tmp_path / "packed").names
    assert caplog.text == ""


def test_a_head_with_other_numbers_is_not_tied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = checkpoint(tmp_path / "said", tied=True, head="own")
    answer = logits(said)
    assert "'model.embed_tokens.weight' and 'lm_head.weight' differ: they are not tied" in caplog.text
    np.testing.assert_array_equal(answer, logits(checkpoint(tmp_path / "untied", tied=False, head="own")))
    convert(said, tmp_path / "packed", overrides=[("", "f32")])
    np.testing.assert_array_equal(logits(tmp_path / "packed"), answer)


def test_left_overs_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny.config_of("llama", num_hidden_layers=2)
    tensors = {name: tiny.weight(name, shape) for name, shape in tiny.shapes(config).items()}
    tensors["adapter.weight"] = np.zeros((2, 2), np.float32)
    source = tiny.checkpoint(tmp_path, dtype="F32", num_hidden_layers=1)
    tiny.write_safetensors(tmp_path / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()})
    bind(formats.open(source))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: the model does not use tensor 'model.layers.1.self_attn.q_proj.weight' and 9 more, such as "
        "'adapter.weight'; left out"
    ]


@pytest.mark.live
@pytest.mark.parametrize("head", ["own", "copy", "none"])
def test_transformers_ties_the_same(head: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", tied=True, head=head)
    np.testing.assert_allclose(logits(folder), transformers_logits(folder, PROMPT), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_names_without_the_model_s_prefix(tmp_path: Path, family: str) -> None:
    """As `AutoModel` saves a model, and as GPT-2 was published."""
    whole = golden_checkpoint(tmp_path / "whole", family)
    if family == "llama":
        tiny.checkpoint(whole, family, dtype="F32", tie_word_embeddings=True)
    source = formats.open(whole)
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare)
    tensors = {name.partition(".")[2]: ("F32", source.tensor(name).data) for name in source.names}
    tiny.write_safetensors(bare / "model.safetensors", tensors)
    np.testing.assert_array_equal(logits(bare), logits(whole))
