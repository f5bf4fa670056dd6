"""Gemma 3, text only: most layers see a window and turn with one base, every sixth sees all and turns with another.

Norms stand before and after attention and MLP, and multiply by `1 + weight`; heads are normalized; the embedding is
multiplied by the square root of its size. Gemma Team, "Gemma 3 Technical Report", 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.models.config import DecoderConfig, activation, attention_windows, every_nth_full
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import beside, parameters_by_type

_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
"""Base of rotary embedding of each type of layer, where the config has none."""


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `gemma3_text`."""

    beyond_f16: ClassVar[bool] = True

    vocab_size: int = 262_208
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    rope_local_base_freq: float | None = None
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256.0
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 6
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        default = every_nth_full(self.sliding_window_pattern, self.num_hidden_layers)
        return attention_windows(self.layer_types, default, self.sliding_window)

    def rope_of(self, layer_type: str) -> dict[str, Any]:
        """Rope parameters of one type of layer; what the old spellings say is for full attention alone."""
        others: dict[str, Any] = {"in rope_local_base_freq": {"rope_theta": self.rope_local_base_freq}}
        if layer_type == "full_attention":
            others = {"at the top level": beside(self), "in rope_scaling": self.rope_scaling}
        return {"rope_theta": _THETA[layer_type], **parameters_by_type(self, layer_type, others)}


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    full = rotation(ops, config, config.rope_of("full_attention"))
    local = rotation(ops, config, config.rope_of("sliding_attention"))
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps, offset=1.0)
    bias, scale = config.attention_bias, config.query_pre_attn_scalar**-0.5
    head_norm = partial(norm, size=config.head_size)
    attention = Attention(ops, config, scale=scale, norm=head_norm, qkv_bias=bias, output_bias=bias)
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_activation", config.hidden_activation))

    # transformers rounds the factor to the dtype it runs in; computing in f32, so is it here.
    h = ops.scale(embed(ops, config), math.sqrt(config.hidden_size))
    for layer, window in enumerate(config.windows):
        name, angles = f"model.layers.{layer}", local if window else full
        x = norm(h, f"{name}.input_layernorm")
        x = attention(x, f"{name}.self_attn", rotation=angles, window=window)
        h = ops.add(h, norm(x, f"{name}.post_attention_layernorm"))
        x = mlp(norm(h, f"{name}.pre_feedforward_layernorm"), f"{name}.mlp")
        h = ops.add(h, norm(x, f"{name}.post_feedforward_layernorm"))
    head(ops, config, norm(ops.select(h), "model.norm"))
