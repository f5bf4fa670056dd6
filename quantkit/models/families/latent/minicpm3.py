"""MiniCPM3: latent attention in a dense model whose embeddings, layers and logits are scaled by constants.

Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quantkit.models.config import activation
from quantkit.models.decoder import GatedMLP, embed, head
from quantkit.models.decoder.latent_attention import LatentAttention, LatentConfig, rotation
from quantkit.models.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """`config.json` of model type `minicpm3`."""

    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    kv_lora_rank: int = 256
    q_lora_rank: int | None = 768
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 32
    v_head_dim: int | None = None
    rope_interleave: bool = False
    mlp_bias: bool = False
    scale_emb: float = 12.0
    scale_depth: float | None = 1.4
    dim_model_base: int | None = 256


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention, angles = LatentAttention(ops, config), rotation(ops, config)
    act = activation("hidden_act", config.hidden_act)
    mlp = GatedMLP(ops, config.intermediate_size, act, bias=config.mlp_bias)
    depth = config.num_hidden_layers**0.5
    residual = (config.scale_depth or depth) / depth

    h = ops.scale(embed(ops, config), config.scale_emb)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", angles)
        h = ops.add(h, ops.scale(x, residual))
        x = mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        h = ops.add(h, ops.scale(x, residual))
    x = norm(ops.select(h), "model.norm")
    head(ops, config, ops.scale(x, (config.dim_model_base or config.hidden_size) / config.hidden_size))
