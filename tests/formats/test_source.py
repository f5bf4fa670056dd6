"""What a source holds meets what a program reads: aliases, optional tensors, left-overs, and weights left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import tiny
from quantkit import formats
from quantkit.errors import CheckpointError
from quantkit.formats import ModelSource
from quantkit.tensor import TensorSpec

UP = "model.layers.0.mlp.up_proj.weight"


def source_of(folder: Path, *names: str) -> ModelSource:
    """A folder whose tensors have these names, the shape (2, 3), and values that tell them apart."""
    tiny.checkpoint(folder)
    values = {name: np.full((2, 3), number, np.float32) for number, name in enumerate(names)}
    tiny.write_safetensors(folder / "model.safetensors", {name: ("F32", array) for name, array in values.items()})
    return formats.open(folder)


def program(*specs: TensorSpec | str) -> Mapping[str, TensorSpec]:
    found = [TensorSpec(spec, (2, 3)) if isinstance(spec, str) else spec for spec in specs]
    return {spec.name: spec for spec in found}


def test_a_tensor_under_its_alias(tmp_path: Path) -> None:
    source = source_of(tmp_path, UP, "lm_head.weight")
    embedding = TensorSpec("model.embed_tokens.weight", (2, 3), "embedding", aliases=("lm_head.weight",))
    selection = source.select(program(embedding, UP))
    assert selection.names == (UP, embedding.name)  # in the order of the file
    assert selection.unused == ()
    assert selection.spec(embedding.name).kind == "f32"
    assert selection.spec(embedding.name).role == "embedding"
    assert selection.tensor(embedding.name).data.max() == 1
    assert selection.file_of(embedding.name) == tmp_path / "model.safetensors"
    assert (selection.config, selection.nbytes) == (source.config, source.nbytes)
    assert (selection.files, selection.identity()) == (source.files, source.identity())


def test_its_own_name_comes_before_aliases_and_the_copy_is_harmless(tmp_path: Path, caplog) -> None:
    source = source_of(tmp_path, "lm_head.weight", "model.embed_tokens.weight")
    embedding = TensorSpec("model.embed_tokens.weight", (2, 3), aliases=("lm_head.weight",))
    assert source.select(program(embedding)).tensor(embedding.name).data.max() == 1
    assert caplog.text == ""


def test_an_optional_tensor_stands_for_zeros(tmp_path: Path) -> None:
    bias = TensorSpec("model.layers.0.mlp.up_proj.bias", (2,), optional=True)
    selection = source_of(tmp_path, UP).select(program(UP, bias))
    tensor = selection.tensor(bias.name)
    assert (tensor.kind, tensor.shape, tensor.data.tolist()) == ("f32", (2,), [0.0, 0.0])
    assert selection.spec(bias.name).kind == "f32"
    assert selection.file_of(bias.name) == tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_norm.weight",
        "model.norm.bias",
    ],
)
def test_a_weight_of_a_layer_in_use_must_be_used(name: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, UP, "model.norm.weight", name)
    with pytest.raises(CheckpointError, match=f"model.safetensors: the model does not use tensor '{name}' of a layer"):
        source.select(program(UP, "model.norm.weight"))


def test_other_left_overs_are_one_warning(tmp_path: Path, caplog) -> None:
    source = source_of(
        tmp_path,
        UP,
        "model.layers.0.self_attn.rotary_emb.inv_freq",  # computed, not read
        "model.layers.1.mlp.up_proj.weight",  # of a layer that the configuration does not count
        "vision_tower.layers.0.mlp.up_proj.weight",
        "adapter.weight",
    )
    with caplog.at_level(logging.WARNING):
        selection = source.select(program(UP))
    assert selection.unused == (
        "model.layers.1.mlp.up_proj.weight",
        "vision_tower.layers.0.mlp.up_proj.weight",
        "adapter.weight",
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: the model does not use tensor 'model.layers.1.mlp.up_proj.weight' and 2 more, such as "
        "'adapter.weight'; left out"
    ]
