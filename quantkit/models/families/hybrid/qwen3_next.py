"""Qwen3-Next and Qwen3.5: layers with a gated delta rule; every fourth has attention, whose heads have gates.

Norms multiply by `1 + weight`, a quarter of the channels of a head turns. Qwen3-Next and the larger models of Qwen3.5
have experts, and one more that all tokens go to. They differ in how checkpoints store the first products of a layer.
What predicts further tokens (`mtp`) is left out.

Qwen Team, "Qwen3-Next: Towards Ultimate Training & Inference Efficiency", 2025, and "Qwen3.5", 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from quantkit.models.config import activation, bounded
from quantkit.models.decoder import Attention, FeedForward, GatedMLP, embed, head, rotation
from quantkit.models.decoder.delta_net import DeltaNet, DeltaNetConfig
from quantkit.models.decoder.qwen_experts import QwenExpertsConfig, feed_forwards
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused, Grouped


@dataclass(frozen=True, kw_only=True)
class Config(DeltaNetConfig):
    """`config.json` of model type `qwen3_5_text`."""

    default_rotary_part: ClassVar[float | None] = 0.25

    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    max_position_embeddings: int = 32_768


@dataclass(frozen=True, kw_only=True)
class NextConfig(QwenExpertsConfig, Config):
    """`config.json` of model type `qwen3_next`."""

    num_key_value_heads: int | None = 2
    head_dim: int | None = 256
    num_experts: int = bounded(512, minimum=0, maximum=1024)
    num_experts_per_tok: int = 10
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    norm_topk_prob: bool = True


@dataclass(frozen=True, kw_only=True)
class MoeConfig(NextConfig):
    """`config.json` of model type `qwen3_5_moe_text`: all layers have experts, whose weights sum to 1."""

    intermediate_size: int = 0
    num_experts: int = bounded(256, maximum=1024)
    num_experts_per_tok: int = 8


_GATED = Fused("self_attn.q_proj", ("self_attn.q_proj.query", "self_attn.q_proj.gate"), groups="num_attention_heads")
STORED = (_GATED,)
NEXT_STORED = (
    _GATED,
    Grouped(
        "linear_attn.in_proj_qkvz",
        (
            ("linear_attn.in_proj_qkv", "key_size"),
            ("linear_attn.in_proj_qkv", "key_size"),
            ("linear_attn.in_proj_qkv", "values_per_key"),
            ("linear_attn.in_proj_z", "values_per_key"),
        ),
        groups="key_heads",
    ),
    Fused("linear_attn.in_proj_ba", ("linear_attn.in_proj_b", "linear_attn.in_proj_a"), groups="key_heads"),
)
MOE_STORED = (
    _GATED,
    Fused("mlp.experts.gate_up_proj", ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"), weight=""),
    Fused("mlp.experts.down_proj", ("mlp.experts.*.down_proj",), weight=""),
)


def dense(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))
    _forward(config, ops, [mlp] * config.num_hidden_layers)


def mixture(config: NextConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, feed_forwards(ops, config, config.shared_expert_intermediate_size))


def _forward(config: Config, ops: Recorder, layers: list[FeedForward]) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps, offset=1.0)
    delta_net = DeltaNet(ops, config, config.rms_norm_eps)
    attention = Attention(
        ops,
        config,
        config.head_size**-0.5,
        norm=partial(norm, size=config.head_size),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        query="q_proj.query",
        gate="q_proj.gate",
        gate_bias=config.attention_bias,
    )
    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    for layer, (feed_forward, attends) in enumerate(zip(layers, config.attends, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = attention(x, f"{name}.self_attn", rotation=angles) if attends else delta_net(x, f"{name}.linear_attn")
        h = ops.add(h, x)
        h = ops.add(h, feed_forward(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "model.norm"))
