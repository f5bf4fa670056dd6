"""Granite: Llama with four factors, of the embedding, the scores, what a layer adds, and the logits.

Granite MoE is the same with mixtures of experts, stored as stacks; beside them there may be one for all tokens.

IBM Research, "Granite 3.0 Language Models", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quantkit.models.config import DecoderConfig, activation, bounded
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Router, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


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


@dataclass(frozen=True, kw_only=True)
class MoeConfig(Config):
    """`config.json` of model type `granitemoe`."""

    num_local_experts: int = bounded(8, maximum=1024)
    num_experts_per_tok: int = 2


@dataclass(frozen=True, kw_only=True)
class MoeSharedConfig(MoeConfig):
    """`config.json` of model type `granitemoeshared`."""

    shared_intermediate_size: int = bounded(0, minimum=0)


MOE_STORED = (
    Fused("input_linear", ("experts.*.gate_proj", "experts.*.up_proj")),
    Fused("output_linear", ("experts.*.down_proj",)),
    Fused("shared_mlp.input_linear", ("shared_mlp.gate_proj", "shared_mlp.up_proj")),
    Fused("shared_mlp.output_linear", ("shared_mlp.down_proj",)),
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass of a dense model."""
    act = activation("hidden_act", config.hidden_act)
    _forward(config, ops, GatedMLP(ops, config.intermediate_size, act, bias=config.mlp_bias), "mlp")


def moe(config: MoeConfig, ops: Recorder) -> None:
    """Record the forward pass of a mixture of experts."""
    _forward(config, ops, _experts(config, ops), "block_sparse_moe")


def moe_shared(config: MoeSharedConfig, ops: Recorder) -> None:
    """Record the forward pass of a mixture of experts with another one for all tokens."""
    experts = _experts(config, ops)
    shared = GatedMLP(ops, config.shared_intermediate_size, activation("hidden_act", config.hidden_act))

    def both(x: Value, module: str) -> Value:
        return ops.add(experts(x, module), shared(x, f"{module.rpartition('.')[0]}.shared_mlp"))

    _forward(config, ops, both if config.shared_intermediate_size else experts, "block_sparse_moe")


def _experts(config: MoeConfig, ops: Recorder) -> Experts:
    router = Router(
        ops,
        config.num_local_experts,
        config.num_experts_per_tok,
        name="router.layer",
        scoring="softmax_of_chosen",
        normalize=False,
    )
    act = activation("hidden_act", config.hidden_act)
    return Experts(ops, router, config.intermediate_size, partial(ops.gated, activation=act))


def _forward(config: Config, ops: Recorder, feed_forward: FeedForward, module: str) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    bias = config.attention_bias
    attention = Attention(ops, config, scale=config.attention_multiplier, qkv_bias=bias, output_bias=bias)
    angles = rotation(ops, config, parameters_of(config))
    h = ops.scale(embed(ops, config), config.embedding_multiplier)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", rotation=angles)
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
        x = feed_forward(norm(h, f"{name}.post_attention_layernorm"), f"{name}.{module}")
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    ops.scale(logits, 1 / config.logits_scaling)
