"""Command R and its successors: attention and MLP read the same normalized input, side by side.

Norms subtract the mean and have no bias; neighbouring channels of a head are rotated together; the logits are scaled.
Command R+ normalizes each head of queries and keys, with weights of its own. Command R7B and Command A see a window in
three of four layers, and leave the heads of the fourth, which sees all, unrotated.

Cohere, "Command R", 2024, and "Command A: An Enterprise-Ready Large Language Model", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.models.config import DecoderConfig, activation, attention_windows, every_nth_full
from quantkit.models.decoder import Attention, GatedMLP, Norm, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that both have."""

    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    logit_scale: float = 0.0625


@dataclass(frozen=True, kw_only=True)
class CohereConfig(Config):
    """`config.json` of model type `cohere`."""

    default_theta: ClassVar[float] = 500_000.0

    use_qk_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class Cohere2Config(Config):
    """`config.json` of model type `cohere2`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"position_embedding_type", "rotary_pct"})

    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        default = every_nth_full(self.sliding_window_pattern, self.num_hidden_layers)
        return attention_windows(self.layer_types, default, self.sliding_window)

    @property
    def rotated(self) -> tuple[bool, ...]:
        return tuple(window > 0 for window in self.windows)


def cohere(config: CohereConfig, ops: Recorder) -> None:
    """Record the forward pass."""

    def head_norm(heads: Value, module: str) -> Value:
        size = config.head_size
        shape = (heads.columns // size, size)
        return ops.layer_norm(heads, module, config.layer_norm_eps, size=size, weight_shape=shape)

    _forward(config, ops, head_norm if config.use_qk_norm else None)


def cohere2(config: Cohere2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops)


def _forward(config: Config, ops: Recorder, head_norm: Norm | None = None) -> None:
    norm = partial(ops.layer_norm, eps=config.layer_norm_eps)
    attention = Attention(
        ops,
        config,
        scale=config.head_size**-0.5,
        norm=head_norm,
        interleaved=True,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
    )
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))

    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    for layer, (window, rotated) in enumerate(zip(config.windows, config.rotated, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        attended = attention(x, f"{name}.self_attn", rotation=angles if rotated else None, window=window)
        h = ops.add(ops.add(h, attended), mlp(x, f"{name}.mlp"))
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    ops.scale(logits, config.logit_scale)
