"""Mixtral and those that are built like it: Llama, whose MLPs are mixtures of experts.

They differ in flags. Qwen2-MoE adds an expert that all tokens go to, weighed by a gate of its own; Qwen3-MoE normalizes
heads; OLMoE normalizes queries and keys as a whole, and so does MiniMax-M2, which chooses experts by sigmoids and
biases, and rotates a part of each head. Phi-3.5-MoE has LayerNorms, and a way of its own to weigh experts. In Qwen's,
some layers may have a plain MLP. Aria has experts that all tokens go to, and stores the others transposed, in stacks.

Jiang et al., "Mixtral of Experts", 2024. Yang et al., "Qwen2 Technical Report", 2024, and "Qwen3 Technical Report",
2025. MiniMax, "MiniMax-M2", 2025. Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024. Abdin et
al., "Phi-3 Technical Report", 2024. Li et al., "Aria: An Open Multimodal Native Mixture-of-Experts Model", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import (
    Attention,
    Experts,
    FeedForward,
    GatedMLP,
    Norm,
    Router,
    WithShared,
    pre_norm_decoder,
)
from quantkit.models.decoder.qwen_experts import QwenExpertsConfig, feed_forwards
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(Config):
    """`config.json` of model type `mixtral`."""

    default_theta: ClassVar[float] = 1_000_000.0

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_local_experts: int = bounded(8, maximum=1024)
    num_experts_per_tok: int = 2

    @property
    def windows(self) -> tuple[int, ...]:
        return (self.sliding_window or 0,) * self.num_hidden_layers


@dataclass(frozen=True, kw_only=True)
class PhiMoeConfig(MixtralConfig):
    """`config.json` of model type `phimoe`, which chooses experts with a tolerance of twice the training's jitter."""

    max_position_embeddings: int = 131_072
    original_max_position_embeddings: int | None = None
    num_local_experts: int = bounded(16, maximum=1024)
    router_jitter_noise: float = 0.01
    attention_bias: bool = False
    lm_head_bias: bool = False

    @property
    def rope(self) -> dict[str, Any]:
        """Rope parameters, whose factor of short and of long texts is the same in all models."""
        parameters = parameters_of(self)
        short, long = (parameters.pop(name, None) for name in ("short_mscale", "long_mscale"))
        if short != long:
            raise UnsupportedError(
                f"config.json: short_mscale is {shown(short)} and long_mscale {shown(long)}; supported are equal ones"
            )
        return parameters if short is None else {**parameters, "attention_factor": short}


@dataclass(frozen=True, kw_only=True)
class AriaConfig(Config):
    """`config.json` of model type `aria_text`; what else it says of experts, such as their size, is of older files."""

    attention_bias: bool = False
    mlp_bias: bool = False
    moe_num_experts: int = bounded(8, maximum=1024)
    moe_num_shared_experts: int = 2
    moe_topk: int = 2


ARIA_STORED = (
    Fused("mlp.experts.fc1", ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"), transposed=True),
    Fused("mlp.experts.fc2", ("mlp.experts.*.down_proj",), transposed=True),
)


@dataclass(frozen=True, kw_only=True)
class OlmoeConfig(Config):
    """`config.json` of model type `olmoe`."""

    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    num_experts: int = bounded(64, maximum=1024)
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(QwenExpertsConfig):
    """`config.json` of model type `qwen2_moe`."""

    num_key_value_heads: int | None = 16
    qkv_bias: bool = True
    shared_expert_intermediate_size: int = 5632


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(QwenExpertsConfig):
    """`config.json` of model type `qwen3_moe`."""

    num_key_value_heads: int | None = 4
    attention_bias: bool = False
    num_experts: int = bounded(128, minimum=0, maximum=1024)
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768


@dataclass(frozen=True, kw_only=True)
class MiniMaxConfig(Config):
    """`config.json` of model type `minimax_m2`, which normalizes queries and keys whatever the config says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"use_qk_norm"})
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"num_experts": "num_local_experts"})
    default_theta: ClassVar[float] = 5_000_000.0
    default_rotary_part: ClassVar[float | None] = 1.0

    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 196_608
    rotary_dim: int | None = None
    num_local_experts: int = bounded(256, maximum=1024)
    num_experts_per_tok: int = 8

    @property
    def rope(self) -> dict[str, Any]:
        """Rope parameters, where `rotary_dim` is another way to say which part of a head is rotated."""
        part = None if self.rotary_dim is None else self.rotary_dim / self.head_size
        return parameters_of(self if part is None else replace(self, partial_rotary_factor=part))


def mixtral(config: MixtralConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    experts = _experts(ops, config, config.num_local_experts, config.intermediate_size, gate="w1", down="w2", up="w3")
    _forward(config, ops, [experts] * config.num_hidden_layers, module="block_sparse_moe")


def phimoe(config: PhiMoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.num_experts_per_tok != 2:
        raise UnsupportedError(f"config.json: num_experts_per_tok is {config.num_experts_per_tok}; supported is 2")
    bias, act = config.attention_bias, activation("hidden_act", config.hidden_act)
    router = Router(
        ops,
        config.num_local_experts,
        config.num_experts_per_tok,
        scoring="softmax_of_close",
        normalize=False,
        tolerance=2 * config.router_jitter_noise,
    )
    gated = partial(ops.gated, activation=act)
    experts = Experts(ops, router, config.intermediate_size, gated, gate="w1", down="w2", up="w3")
    pre_norm_decoder(
        ops,
        config,
        Attention(ops, config, config.head_size**-0.5, qkv_bias=bias, output_bias=bias),
        [experts] * config.num_hidden_layers,
        norm=partial(ops.layer_norm, eps=config.rms_norm_eps, bias=True),
        rope=config.rope,
        module="block_sparse_moe",
        head_bias=config.lm_head_bias,
    )


def minimax_m2(config: MiniMaxConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    router = Router(
        ops,
        config.num_local_experts,
        config.num_experts_per_tok,
        correction="e_score_correction_bias",
        scoring="sigmoid",
    )
    act = activation("hidden_act", config.hidden_act)
    gated = partial(ops.gated, activation=act)
    experts = Experts(ops, router, config.intermediate_size, gated, gate="w1", down="w2", up="w3")
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention = Attention(ops, config, config.head_size**-0.5, norm=norm)
    layers = [experts] * config.num_hidden_layers
    pre_norm_decoder(ops, config, attention, layers, rope=config.rope, module="block_sparse_moe")


def aria(config: AriaConfig, ops: Recorder) -> None:
    """Record the forward pass; `hidden_act` is that of the experts that all tokens go to, the others have SiLU."""
    size, bias = config.intermediate_size, config.attention_bias
    router = Router(
        ops, config.moe_num_experts, config.moe_topk, name="router", scoring="softmax_of_chosen", normalize=False
    )
    act = activation("hidden_act", config.hidden_act)
    shared = GatedMLP(ops, size * config.moe_num_shared_experts, act, bias=config.mlp_bias)
    experts = WithShared(ops, Experts(ops, router, size, partial(ops.gated, activation="silu")), shared)
    _forward(config, ops, [experts] * config.num_hidden_layers, qkv_bias=bias, output_bias=bias)


def olmoe(config: OlmoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    experts = _experts(ops, config, config.num_experts, config.intermediate_size, normalize=config.norm_topk_prob)
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    bias = config.attention_bias
    _forward(config, ops, [experts] * config.num_hidden_layers, norm=norm, qkv_bias=bias, output_bias=bias)


def qwen2_moe(config: Qwen2MoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, feed_forwards(ops, config, config.shared_expert_intermediate_size), qkv_bias=config.qkv_bias)


def qwen3_moe(config: Qwen3MoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps, size=config.head_size)
    layers = feed_forwards(ops, config)
    _forward(config, ops, layers, norm=norm, qkv_bias=config.attention_bias, output_bias=config.attention_bias)


def _experts(ops: Recorder, config: Any, experts: int, size: int, *, normalize: bool = True, **modules: Any) -> Experts:
    router = Router(ops, experts, config.num_experts_per_tok, normalize=normalize)
    act = activation("hidden_act", config.hidden_act)
    return Experts(ops, router, size, partial(ops.gated, activation=act), **modules)


def _forward(
    config: DecoderConfig,
    ops: Recorder,
    layers: list[FeedForward],
    *,
    module: str = "mlp",
    norm: Norm | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
) -> None:
    attention = Attention(ops, config, config.head_size**-0.5, norm=norm, qkv_bias=qkv_bias, output_bias=output_bias)
    pre_norm_decoder(ops, config, attention, layers, module=module)
