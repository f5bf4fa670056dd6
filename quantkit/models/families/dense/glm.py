"""GLM 4, ERNIE 4.5 and Helium: Llama, but neighbouring channels of a head are rotated together.

ERNIE may have mixtures of experts, beside one for all tokens; a bias decides with a softmax which ones a token goes to.
GLM rotates half of the channels, stores gate and up as one matrix, and has biases of queries, keys and values; `glm4`,
its successor, has norms after attention and MLP as well.

Team GLM, "ChatGLM: A Family of Large Language Models from GLM-130B to GLM-4 All Tools", 2024. Baidu, "ERNIE 4.5
Technical Report", 2025. Kyutai, "Helium 1", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar

from quantkit.errors import UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import (
    Attention,
    Experts,
    FeedForward,
    GatedMLP,
    Router,
    WithShared,
    embed,
    head,
    pre_norm_decoder,
    rotation,
)
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"
    head_dim: int | None = 128


@dataclass(frozen=True, kw_only=True)
class GlmConfig(Config):
    """`config.json` of model types `glm` and `glm4`."""

    default_rotary_part: ClassVar[float | None] = 0.5

    num_key_value_heads: int | None = 2
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1.5625e-7
    attention_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class ErnieConfig(Config):
    """`config.json` of model type `ernie4_5`."""

    default_theta: ClassVar[float] = 500_000.0

    num_key_value_heads: int | None = 2
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    use_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ErnieMoeConfig(ErnieConfig):
    """`config.json` of model type `ernie4_5_moe`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}
    )

    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    moe_intermediate_size: int = 1536
    moe_num_experts: int = bounded(64, maximum=1024)
    moe_num_shared_experts: int = bounded(2, minimum=0)
    moe_k: int = 6
    moe_layer_start_index: int = bounded(1, minimum=0)
    moe_layer_end_index: int = bounded(-1, minimum=-1)
    moe_layer_interval: int = 1
    moe_norm_min: float = 1e-12

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts, not a plain MLP."""
        first, last, layers = self.moe_layer_start_index, self.moe_layer_end_index, self.num_hidden_layers
        sparse = range(first, layers if last == -1 else last + 1)
        return tuple(layer in sparse and (layer + 1) % self.moe_layer_interval == 0 for layer in range(layers))


@dataclass(frozen=True, kw_only=True)
class HeliumConfig(Config):
    """`config.json` of model type `helium`."""

    default_theta: ClassVar[float] = 100_000.0

    num_key_value_heads: int | None = 20
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-8
    attention_bias: bool = False
    mlp_bias: bool = False


GLM_STORED = (Fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),)


def glm(config: GlmConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, qkv_bias=config.attention_bias)


def glm4(config: GlmConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, qkv_bias=config.attention_bias, post_norms=True)


def ernie4_5(config: ErnieConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, qkv_bias=config.use_bias, output_bias=config.use_bias, mlp_bias=config.use_bias)


def ernie4_5_moe(config: ErnieMoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.moe_norm_min > 1e-6:
        raise UnsupportedError(
            f"config.json: moe_norm_min is {shown(config.moe_norm_min)}; quantkit divides weights by any sum they have"
        )
    bias, scale = config.use_bias, config.head_size**-0.5
    attention = Attention(ops, config, scale, interleaved=True, qkv_bias=bias, output_bias=bias)
    router = Router(
        ops,
        config.moe_num_experts,
        config.moe_k,
        correction="moe_statics.e_score_correction_bias",
        correction_shape=(1, config.moe_num_experts),
    )
    act, size = activation("hidden_act", config.hidden_act), config.moe_intermediate_size
    sparse: FeedForward = Experts(ops, router, size, partial(ops.gated, activation=act))
    if config.moe_num_shared_experts:
        shared = GatedMLP(ops, size * config.moe_num_shared_experts, act, bias=bias)
        sparse = WithShared(ops, sparse, shared)
    plain = GatedMLP(ops, config.intermediate_size, act, bias=bias)
    pre_norm_decoder(ops, config, attention, [sparse if it else plain for it in config.sparse], head_bias=bias)


def helium(config: HeliumConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, qkv_bias=config.attention_bias, mlp_bias=config.mlp_bias)


def _forward(
    config: Config,
    ops: Recorder,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    post_norms: bool = False,
) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    scale = config.head_size**-0.5
    attention = Attention(ops, config, scale=scale, interleaved=True, qkv_bias=qkv_bias, output_bias=output_bias)
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act), bias=mlp_bias)

    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", rotation=angles)
        h = ops.add(h, norm(x, f"{name}.post_self_attn_layernorm") if post_norms else x)
        x = mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        h = ops.add(h, norm(x, f"{name}.post_mlp_layernorm") if post_norms else x)
    head(ops, config, norm(ops.select(h), "model.norm"))
