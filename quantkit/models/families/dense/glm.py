"""GLM 4, ERNIE 4.5 and Helium: Llama, but neighbouring channels of a head are rotated together.

GLM rotates half of the channels, stores gate and up as one matrix, and has biases of queries, keys and values; `glm4`,
its successor, has norms after attention and MLP as well.

Team GLM, "ChatGLM: A Family of Large Language Models from GLM-130B to GLM-4 All Tools", 2024. Baidu, "ERNIE 4.5
Technical Report", 2025. Kyutai, "Helium 1", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from quantkit.models.config import DecoderConfig, activation
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
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
