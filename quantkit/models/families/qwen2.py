"""Qwen2, Qwen2.5 and kin: Llama with biased queries, keys and values, and an optional window in the upper layers.

Yang et al., "Qwen2 Technical Report", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded
from quantkit.models.recorder import Recorder
from quantkit.models.rope import inverse_frequencies


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `qwen2`."""

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32_768
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
    scaling = config.rope_scaling or config.rope_parameters
    rotation = ops.rotation(
        inverse_frequencies(config.head_size, config.rope_theta, scaling, config.max_position_embeddings)
    )
    act = activation("hidden_act", config.hidden_act)
    scale = config.head_size**-0.5
    h = ops.embed("model.embed_tokens", config.vocab_size, config.hidden_size)
    for layer, window in enumerate(config.windows):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"

        x = ops.rms_norm(h, f"model.layers.{layer}.input_layernorm", config.rms_norm_eps)
        q = ops.rope(ops.linear(x, f"{attention}.q_proj", config.query_columns, bias=True), rotation)
        k = ops.rope(ops.linear(x, f"{attention}.k_proj", config.kv_columns, bias=True), rotation)
        v = ops.linear(x, f"{attention}.v_proj", config.kv_columns, bias=True)
        x = ops.attention(q, k, v, layer=layer, head_dim=config.head_size, scale=scale, window=window)
        h = ops.add(h, ops.linear(x, f"{attention}.o_proj", config.hidden_size))

        x = ops.rms_norm(h, f"model.layers.{layer}.post_attention_layernorm", config.rms_norm_eps)
        gate = ops.linear(x, f"{mlp}.gate_proj", config.intermediate_size)
        up = ops.linear(x, f"{mlp}.up_proj", config.intermediate_size)
        h = ops.add(h, ops.linear(ops.gated(gate, up, act), f"{mlp}.down_proj", config.hidden_size))
    h = ops.rms_norm(ops.select(h), "model.norm", config.rms_norm_eps)
    ops.linear(h, config.head, config.vocab_size, role="head")
