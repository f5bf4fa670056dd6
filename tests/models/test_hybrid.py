"""Decoders of layers of several kinds: which layer is what, how much a sequence keeps, and what makes no sense."""

from __future__ import annotations

import re
from typing import Any

import pytest

import tiny
from quantkit.engine.lowering import plan
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.models.program import Program
from quantkit.models.registry import read


def record(model_type: str, **overrides: Any) -> Program:
    return read(tiny.config_of(model_type, **overrides)).record()


def layers(program: Program) -> str:
    """What each layer mixes tokens by: a for attention, c for a convolution."""
    kinds = {"attention": "a", "short_conv": "c"}
    return "".join(kinds.get(operation.name, "") for operation in program.operations)


def test_lfm2_layers() -> None:
    assert layers(record("lfm2")) == "cac"
    assert layers(record("lfm2", full_attn_idxs=...)) == "aaa"
    assert layers(record("lfm2", full_attn_idxs=[])) == "ccc"
    kinds = ["full_attention", "conv", "full_attention"]
    assert layers(record("lfm2", layer_types=kinds)) == "aca"
    assert layers(record("lfm2_moe")) == "ccac"
    for wrong in ([3], [-1], ["1"], [True]):
        with pytest.raises(CheckpointError, match=r"full_attn_idxs is .*, not a list of layers"):
            record("lfm2", full_attn_idxs=wrong)
    with pytest.raises(CheckpointError, match="layer_types has 2 entries for 3 layers"):
        record("lfm2", layer_types=kinds[:2])
    with pytest.raises(UnsupportedError, match="layer_types has 'mamba'; supported are conv and full_attention"):
        record("lfm2", layer_types=["conv", "mamba", "conv"])
    with pytest.raises(CheckpointError, match="layer_types is missing"):
        record("lfm2_moe", layer_types=...)


def test_lfm3_layers() -> None:
    def windows(**overrides: Any) -> list[int]:
        program = record("lfm3", **overrides)
        return [operation.parameters["window"] for operation in program.operations if operation.name == "attention"]

    assert layers(record("lfm3")) == "ccaca"
    assert windows() == [0, 16]
    kinds = ["sliding_attention", "conv", "conv", "conv", "full_attention"]
    assert layers(record("lfm3", layer_types=kinds)) == "accca"
    assert windows(layer_types=kinds) == [16, 0]
    with pytest.raises(CheckpointError, match="sliding_attention, but there is no sliding_window"):
        record("lfm3", sliding_window=None)
    with pytest.raises(UnsupportedError, match="layer_types has 'mamba'; supported are conv and full_attention and"):
        record("lfm3", layer_types=["mamba"] * 5)


def test_recurrent_gemma_layers() -> None:
    assert layers(record("recurrent_gemma")) == "cac"
    assert layers(record("recurrent_gemma", block_types=..., num_hidden_layers=7)) == "ccaccac"
    with pytest.raises(UnsupportedError, match="block_types has 'mamba'; supported are recurrent and attention"):
        record("recurrent_gemma", block_types=["mamba"])
    with pytest.raises(CheckpointError, match="lru_width 66 does not divide into num_attention_heads 4"):
        record("recurrent_gemma", lru_width=66)


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        ({}, 224),
        ({"block_ffn_dim_multiplier": None}, 200),
        ({"block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256}, 256),
        ({"block_auto_adjust_ff_dim": False}, 300),
        ({"block_ff_dim": ..., "intermediate_size": 96}, 96),
    ],
)
def test_lfm2_has_two_thirds_of_the_columns(overrides: dict[str, Any], columns: int) -> None:
    assert record("lfm2", **overrides).tensors["model.layers.0.feed_forward.gate_proj.weight"].shape == (columns, 64)


@pytest.mark.parametrize("changes", [{"block_ff_dim": 1}, {"block_ffn_dim_multiplier": 1e30}, {"conv_L_cache": 9}])
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(QuantkitError, match=rf"^config\.json: .*{re.escape(str(*changes.values()))}"):
        record("lfm2", **changes)


def test_lfm2_keeps_the_last_inputs_of_its_convolutions() -> None:
    program = record("lfm2")
    assert plan(program, dict.fromkeys(program.tensors, "f32")).state_bytes == 2 * 2 * 64 * 4
