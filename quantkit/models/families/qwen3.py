"""Qwen3: every query and key head is normalized before it is rotated, and a head's size is free of the hidden size.

Yang et al., "Qwen3 Technical Report", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded
from quantkit.models.recorder import Recorder
from quantkit.models.rope import inverse_frequencies


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `qwen3`."""

    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    max_position_embeddings: int = 32_768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = bounded(28, minimum=0)
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        """Attention window of each layer, 0 for none."""
        window = self.sliding_window if self.use_sliding_window else None
        full = self.max_window_layers if window else self.num_hidden_layers
        default = ["full_attention" if i < full else "sliding_attention" for i in range(self.num_hidden_layers)]
        return attention_windows(self.layer_types, default, window)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    head_dim, bias, eps = config.head_size, config.attention_bias, config.rms_norm_eps
    scaling = config.rope_scaling or config.rope_parameters
    rotation = ops.rotation(inverse_frequencies(head_dim, config.rope_theta, scaling, config.max_position_embeddings))
    act = activation("hidden_act", config.hidden_act)
    h = ops.embed("model.embed_tokens", config.vocab_size, config.hidden_size)
    for layer, window in enumerate(config.windows):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"

        x = ops.rms_norm(h, f"model.layers.{layer}.input_layernorm", eps)
        q = ops.linear(x, f"{attention}.q_proj", config.query_columns, bias=bias)
        k = ops.linear(x, f"{attention}.k_proj", config.kv_columns, bias=bias)
        v = ops.linear(x, f"{attention}.v_proj", config.kv_columns, bias=bias)
        q = ops.rope(ops.rms_norm(q, f"{attention}.q_norm", eps, size=head_dim), rotation)
        k = ops.rope(ops.rms_norm(k, f"{attention}.k_norm", eps, size=head_dim), rotation)
        x = ops.attention(q, k, v, layer=layer, head_dim=head_dim, scale=head_dim**-0.5, window=window)
        h = ops.add(h, ops.linear(x, f"{attention}.o_proj", config.hidden_size, bias=bias))

        x = ops.rms_norm(h, f"model.layers.{layer}.post_attention_layernorm", eps)
        gate = ops.linear(x, f"{mlp}.gate_proj", config.intermediate_size)
        up = ops.linear(x, f"{mlp}.up_proj", config.intermediate_size)
        h = ops.add(h, ops.linear(ops.gated(gate, up, act), f"{mlp}.down_proj", config.hidden_size))
    h = ops.rms_norm(ops.select(h), "model.norm", eps)
    ops.linear(h, config.head, config.vocab_size, role="head")
