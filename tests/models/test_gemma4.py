"""Gemma 4: which layers share keys and values, how large their heads are, and configs that cannot be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from golden.generate import checkpoint, shapes
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.models.program import Cache, Program
from quantkit.models.registry import read


def record(**overrides: Any) -> Program:
    return read(tiny.config_of("gemma4_text", **overrides)).record()


def caches(program: Program) -> list[tuple[int, int, int]]:
    """Of each layer: which of the caches it reads, its KV heads, and their channels."""
    stored = [operation.output for operation in program.operations if operation.name == "store_kv"]
    read = [operation.inputs[1] for operation in program.operations if operation.name == "attention"]
    return [(stored.index(cache), cache.kv_heads, cache.head_dim) for cache in read if isinstance(cache, Cache)]


def test_the_last_layers_share_the_keys_of_the_last_before_of_their_kind() -> None:
    assert caches(record()) == [(0, 1, 16), (1, 1, 32), (2, 1, 16), (2, 1, 16), (1, 1, 32)]
    assert caches(record(num_kv_shared_layers=0))[3:] == [(3, 1, 16), (4, 1, 32)]


def test_layers_that_share_have_no_keys_but_checkpoints_may(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = record()
    names = {
        f"model.layers.{layer}.self_attn.{part}.weight" for layer in (3, 4) for part in ("k_proj", "v_proj", "k_norm")
    }
    assert program.spare == names
    assert not names & program.tensors.keys()
    checkpoint(tmp_path, "gemma4_text")
    tensors = {name: ("F32", tiny.weight(name, shape)) for name, shape in shapes("gemma4_text").items()}
    tiny.write_safetensors(
        tmp_path / "model.safetensors", tensors | {name: ("F32", np.zeros((4, 4), np.float32)) for name in names}
    )
    with caplog.at_level(logging.WARNING):
        assert bind(formats.open(tmp_path)).weights.unused == ()
    assert not caplog.text
    other = {"model.layers.2.self_attn.v_norm.weight": ("F32", np.zeros(16, np.float32))}
    tiny.write_safetensors(tmp_path / "model.safetensors", tensors | other)
    with pytest.raises(CheckpointError, match=r"does not use tensor 'model\.layers\.2\.self_attn\.v_norm\.weight'"):
        bind(formats.open(tmp_path))


def test_sizes_of_heads_as_transformers_saves_them() -> None:
    sizes = {"head_dim": 32, "num_key_value_heads": 1}
    saved = {"global_head_dim": ..., "per_layer_config": {"1": sizes, "4": sizes}}
    assert record(**saved) == record()
    assert record(**saved | {"per_layer_config": {"01": sizes, "04": sizes}}) == record()
    fewer = record(attention_k_eq_v=True, num_key_value_heads=2, num_global_key_value_heads=1)
    assert caches(fewer) == [(0, 2, 16), (1, 1, 32), (2, 2, 16), (2, 2, 16), (1, 1, 32)]
    assert "model.layers.1.self_attn.v_proj.weight" not in fewer.tensors
    assert caches(record(num_key_value_heads=2, num_global_key_value_heads=1))[1] == (1, 2, 32)


def test_the_last_layer_sees_all_tokens() -> None:
    sliding = ["sliding_attention"] * 5
    windows = [
        each.parameters["window"]
        for each in record(layer_types=sliding, num_kv_shared_layers=0).operations
        if each.name == "attention"
    ]
    assert windows == [16, 16, 16, 16, 0]


def test_a_token_reads_one_row_of_the_table_of_all_layers() -> None:
    program = record()
    table = program.tensors["model.embed_tokens_per_layer.weight"]
    assert (table.shape, table.role) == ((320, 5 * 8), "embedding")
    (step,) = [each for each in program.operations if each.tensors[:1] == (table.name,)]
    assert step.spec.looks_up
    assert "model.embed_tokens_per_layer.weight" not in record(hidden_size_per_layer_input=0).tensors


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"num_kv_shared_layers": 5}, UnsupportedError, "num_kv_shared_layers is 5 of 5 layers: the model reads"),
        ({"num_kv_shared_layers": 4}, CheckpointError, "layer 1 has no earlier layer of its kind"),
        ({"use_bidirectional_attention": "all"}, UnsupportedError, "use_bidirectional_attention is 'all'"),
        ({"enable_moe_block": True}, CheckpointError, r"num_experts, .* are \(None, None, None\)"),
        (
            {"enable_moe_block": True, "num_experts": 2, "top_k_experts": 3, "moe_intermediate_size": 8},
            CheckpointError,
            "a token goes to 3 experts, of which there are 2",
        ),
        ({"per_layer_config": {"1": {"sliding_window": 3}}}, UnsupportedError, "per_layer_config has .* for layer 1"),
        ({"per_layer_config": {"1": 3}}, UnsupportedError, "per_layer_config has 3 for layer 1"),
        ({"per_layer_config": {"1": {"head_dim": "x"}}}, CheckpointError, "layer 1 has 1 KV heads of 'x' channels"),
        ({"per_layer_config": {"2": {"num_key_value_heads": 3}}}, CheckpointError, "layer 2 has 3 KV heads"),
        ({"per_layer_config": {"4": {"head_dim": 32}}}, CheckpointError, "layer 4 has no earlier layer of its kind"),
        ({"global_head_dim": 33}, CheckpointError, "layer 1 has 1 KV heads of 33 channels"),
        ({"rope_theta": 500.0}, CheckpointError, r"rope_theta is 10000\.0 in rope_parameters"),
        ({"rope_parameters": {"full_attention": {}}}, CheckpointError, "the rope parameter rope_theta is None"),
    ],
)
def test_configs_that_are_refused(overrides: dict[str, Any], error: type[QuantkitError], message: str) -> None:
    with pytest.raises(error, match=rf"^config\.json: .*{message}"):
        record(**overrides)
