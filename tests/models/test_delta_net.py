"""Models with gated delta rules: how their checkpoints are stored, and configs that contradict themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from golden import generate as golden
from quantkit import formats
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.generation.loading import load_model
from quantkit.models.families.hybrid.olmo_hybrid import Config as OlmoHybridConfig
from quantkit.models.registry import read

PROMPT = golden.token_ids(320)


def logits(folder: Path) -> bytes:
    model = load_model(folder, threads=1, kv_dtype="f32")
    try:
        return model(PROMPT).tobytes()
    finally:
        model.close()


def stored(folder: Path) -> dict[str, tuple[str, Any]]:
    source = formats.open(folder)
    return {name: ("F32", source.tensor(name, copy=True).data) for name in source.names}


def test_experts_in_stacks_are_read(tmp_path: Path) -> None:
    folder = golden.checkpoint(tmp_path, "qwen3_5_moe_text")
    expected, tensors = logits(folder), stored(folder)
    config = tiny.config_of("qwen3_5_moe_text")
    for layer in range(config["num_hidden_layers"]):
        experts = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: [tensors.pop(f"{experts}.{number}.{part}.weight")[1] for number in range(config["num_experts"])]
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        both = np.concatenate([np.stack(parts["gate_proj"]), np.stack(parts["up_proj"])], axis=1)
        tensors[f"{experts}.gate_up_proj"] = "F32", both
        tensors[f"{experts}.down_proj"] = "F32", np.stack(parts["down_proj"])
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    assert logits(folder) == expected


def test_what_predicts_further_tokens_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = golden.checkpoint(tmp_path, "qwen3_5_text")
    expected, tensors = logits(folder), stored(folder)
    names = ("mtp.fc", "mtp.layers.0.self_attn.q_proj", "mtp.norm")
    tensors |= {f"{name}.weight": ("F32", np.zeros((4, 4), np.float32)) for name in names}
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    assert logits(folder) == expected
    (record,) = caplog.records
    assert "does not use tensor 'mtp.fc.weight' and 2 more" in record.getMessage()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (CheckpointError, "linear_num_value_heads 3 is no multiple", {"linear_num_value_heads": 3}),
        (CheckpointError, "layer_types has 1 entries for 4 layers", {"layer_types": ["linear_attention"]}),
        (UnsupportedError, "layer_types has 'sliding_attention'", {"layer_types": ["sliding_attention"] * 4}),
        (CheckpointError, "linear_conv_kernel_dim is 1, not", {"linear_conv_kernel_dim": 1}),
    ],
)
def test_contradictions_are_refused(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=rf"^config\.json: {message}"):
        read(tiny.config_of("qwen3_next", **changes)).record()


def test_what_olmo_hybrid_leaves_out_follows_from_the_sizes() -> None:
    config = {"vocab_size": 8, "hidden_size": 3840, "intermediate_size": 8, "num_hidden_layers": 3}
    parsed = OlmoHybridConfig.from_dict(config | {"num_attention_heads": 30})
    assert (parsed.key_heads, parsed.value_heads, parsed.key_size, parsed.value_size) == (30, 30, 96, 192)
    assert parsed.attends == (False, False, True)
    assert parsed.turns
