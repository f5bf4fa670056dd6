"""Mistral 7B and kin: Llama with a sliding attention window, which later versions leave out (`null`).

Jiang et al., "Mistral 7B", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.models.config import DecoderConfig, activation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import inverse_frequencies


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `mistral`."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 4096


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    scaling = config.rope_scaling or config.rope_parameters
    rotation = ops.rotation(
        inverse_frequencies(config.head_size, config.rope_theta, scaling, config.max_position_embeddings)
    )
    act = activation("hidden_act", config.hidden_act)
    window, scale = config.sliding_window or 0, config.head_size**-0.5
    h = ops.embed("model.embed_tokens", config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"

        x = ops.rms_norm(h, f"model.layers.{layer}.input_layernorm", config.rms_norm_eps)
        q = ops.rope(ops.linear(x, f"{attention}.q_proj", config.query_columns), rotation)
        k = ops.rope(ops.linear(x, f"{attention}.k_proj", config.kv_columns), rotation)
        v = ops.linear(x, f"{attention}.v_proj", config.kv_columns)
        x = ops.attention(q, k, v, layer=layer, head_dim=config.head_size, scale=scale, window=window)
        h = ops.add(h, ops.linear(x, f"{attention}.o_proj", config.hidden_size))

        x = ops.rms_norm(h, f"model.layers.{layer}.post_attention_layernorm", config.rms_norm_eps)
        gate = ops.linear(x, f"{mlp}.gate_proj", config.intermediate_size)
        up = ops.linear(x, f"{mlp}.up_proj", config.intermediate_size)
        h = ops.add(h, ops.linear(ops.gated(gate, up, act), f"{mlp}.down_proj", config.hidden_size))
    h = ops.rms_norm(ops.select(h), "model.norm", config.rms_norm_eps)
    ops.linear(h, config.head, config.vocab_size, role="head")
