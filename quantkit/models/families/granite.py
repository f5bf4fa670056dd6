"""Granite: Llama with four factors, of the embedding, the scores, what a layer adds, and the logits.

IBM Research, "Granite 3.0 Language Models", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quantkit.models.config import DecoderConfig, activation
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `granite`."""

    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    bias = config.attention_bias
    attention = Attention(ops, config, scale=config.attention_multiplier, qkv_bias=bias, output_bias=bias)
    act = activation("hidden_act", config.hidden_act)
    mlp = GatedMLP(ops, config.intermediate_size, act, bias=config.mlp_bias)

    angles = rotation(ops, config, parameters_of(config))
    h = ops.scale(embed(ops, config), config.embedding_multiplier)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", rotation=angles)
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
        x = mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    ops.scale(logits, 1 / config.logits_scaling)
