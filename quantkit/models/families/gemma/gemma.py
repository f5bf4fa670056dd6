"""Gemma, Gemma 2, VaultGemma: norms multiply by `1 + weight`, the embedding by the square root of its size.

Gemma is otherwise built like Llama. Gemma 2 has norms after attention and MLP as well, limits its scores and its logits
by a hyperbolic tangent, and every second layer sees a window; VaultGemma is the same without the norms after them.
`gemma3.py` has their successor.

Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology", 2024, and "Gemma 2", 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.models.config import DecoderConfig, activation, attention_windows
from quantkit.models.decoder import Attention, GatedMLP, Norm, embed, head, rotation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that both have."""

    beyond_f16: ClassVar[bool] = True

    head_dim: int | None = 256
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(Config):
    """`config.json` of model type `gemma`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"hidden_activation"})

    num_key_value_heads: int | None = 16
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def activation(self) -> str:
        """The recorder's name; the first releases say `gelu` and mean its approximation."""
        name = "gelu_pytorch_tanh" if self.hidden_act == "gelu" else self.hidden_act
        return activation("hidden_act", name)


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(Config):
    """`config.json` of model type `gemma2`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"sliding_window_size"})

    num_key_value_heads: int | None = 4
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = 256.0
    sliding_window: int | None = 4096
    layer_types: list[Any] | None = None
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    @property
    def windows(self) -> tuple[int, ...]:
        default = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(self.num_hidden_layers)]
        return attention_windows(self.layer_types, default, self.sliding_window)


def gemma(config: GemmaConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps, offset=1.0)
    bias = config.attention_bias
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    mlp = GatedMLP(ops, config.intermediate_size, config.activation)

    angles = rotation(ops, config, parameters_of(config))
    h = ops.scale(embed(ops, config), math.sqrt(config.hidden_size))
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = ops.add(h, attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", rotation=angles))
        h = ops.add(h, mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "model.norm"))


def gemma2(config: Gemma2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, post_norm=partial(ops.rms_norm, eps=config.rms_norm_eps, offset=1.0))


def vaultgemma(config: Gemma2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, post_norm=lambda x, module: x)


def _forward(config: Gemma2Config, ops: Recorder, *, post_norm: Norm) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps, offset=1.0)
    attention = Attention(
        ops,
        config,
        scale=config.query_pre_attn_scalar**-0.5,
        softcap=config.attn_logit_softcapping or 0.0,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
    )
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_activation", config.hidden_activation))

    angles = rotation(ops, config, parameters_of(config))
    h = ops.scale(embed(ops, config), math.sqrt(config.hidden_size))
    for layer, window in enumerate(config.windows):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", rotation=angles, window=window)
        h = ops.add(h, post_norm(x, f"{name}.post_attention_layernorm"))
        x = mlp(norm(h, f"{name}.pre_feedforward_layernorm"), f"{name}.mlp")
        h = ops.add(h, post_norm(x, f"{name}.post_feedforward_layernorm"))
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    if config.final_logit_softcapping is not None:
        ops.softcap(logits, config.final_logit_softcapping)
