"""Llama 1 to 3 and all that are built alike: SmolLM2, TinyLlama, Yi, DeepSeek-R1-Distill-Llama.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.models.config import DecoderConfig, activation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import inverse_frequencies


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `llama`."""

    attention_bias: bool = False
    mlp_bias: bool = False


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    scaling = config.rope_scaling or config.rope_parameters
    rotation = ops.rotation(
        inverse_frequencies(config.head_size, config.rope_theta, scaling, config.max_position_embeddings)
    )
    act = activation("hidden_act", config.hidden_act)
    h = ops.embed("model.embed_tokens", config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"

        x = ops.rms_norm(h, f"model.layers.{layer}.input_layernorm", config.rms_norm_eps)
        q = ops.linear(x, f"{attention}.q_proj", config.query_columns, bias=config.attention_bias)
        k = ops.linear(x, f"{attention}.k_proj", config.kv_columns, bias=config.attention_bias)
        v = ops.linear(x, f"{attention}.v_proj", config.kv_columns, bias=config.attention_bias)
        q, k = ops.rope(q, rotation), ops.rope(k, rotation)
        x = ops.attention(q, k, v, layer=layer, head_dim=config.head_size, scale=config.head_size**-0.5)
        h = ops.add(h, ops.linear(x, f"{attention}.o_proj", config.hidden_size, bias=config.attention_bias))

        x = ops.rms_norm(h, f"model.layers.{layer}.post_attention_layernorm", config.rms_norm_eps)
        gate = ops.linear(x, f"{mlp}.gate_proj", config.intermediate_size, bias=config.mlp_bias)
        up = ops.linear(x, f"{mlp}.up_proj", config.intermediate_size, bias=config.mlp_bias)
        x = ops.gated(gate, up, act)
        h = ops.add(h, ops.linear(x, f"{mlp}.down_proj", config.hidden_size, bias=config.mlp_bias))
    h = ops.rms_norm(ops.select(h), "model.norm", config.rms_norm_eps)
    ops.linear(h, config.head, config.vocab_size, role="head")
