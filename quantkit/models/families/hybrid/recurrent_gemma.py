"""RecurrentGemma: two layers of three are gated linear recurrences, the third attends to a window.

Norms multiply by `1 + weight`. The gates of a recurrence are block-diagonal products, a matrix for each head. Botev et
al., "RecurrentGemma: Moving Past Transformers for Efficient Open Language Models", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused

STORED = tuple(
    Fused(f"rg_lru.{gate}_gate", (f"rg_lru.{gate}_gate.*",), transposed=True, weight="_weight", bias="_bias")
    for gate in ("input", "recurrent")
)


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `recurrent_gemma`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"sliding_window": "attention_window_size"})
    IGNORED: ClassVar[frozenset[str]] = frozenset({"hidden_act"})
    default_rotary_part: ClassVar[float | None] = 0.5

    max_position_embeddings: int = 8192
    hidden_activation: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    attention_window_size: int = 2048
    lru_width: int | None = None
    conv1d_width: int = bounded(4, minimum=2, maximum=8)
    logits_soft_cap: float = 30.0
    block_types: list[Any] | None = None

    @property
    def width(self) -> int:
        """Channels of a recurrence."""
        width = self.lru_width or self.hidden_size
        if width % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: lru_width {width} does not divide into num_attention_heads {self.num_attention_heads}"
            )
        return width

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each layer is attention, not a recurrence."""
        kinds = self.block_types or ["recurrent", "recurrent", "attention"]
        for kind in kinds:
            if kind not in ("recurrent", "attention"):
                raise UnsupportedError(
                    f"config.json: block_types has {shown(kind)}; supported are recurrent and attention"
                )
        return tuple(kinds[layer % len(kinds)] == "attention" for layer in range(self.num_hidden_layers))


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps, offset=1.0)
    attention = Attention(ops, config, config.head_size**-0.5, qkv_bias=config.attention_bias, output_bias=True)
    act = activation("hidden_activation", config.hidden_activation)
    mlp = GatedMLP(ops, config.intermediate_size // 2, act, bias=True)
    angles = rotation(ops, config, parameters_of(config))
    h = ops.scale(embed(ops, config), _embedding_scale(config.hidden_size))
    for layer, attends in enumerate(config.attends):
        name = f"model.layers.{layer}"
        x, block = norm(h, f"{name}.temporal_pre_norm"), f"{name}.temporal_block"
        if attends:
            x = attention(x, block, rotation=angles, window=config.attention_window_size)
        else:
            x = _recurrence(config, ops, x, block, act)
        h = ops.add(h, x)
        h = ops.add(h, mlp(norm(h, f"{name}.channel_pre_norm"), f"{name}.mlp_block"))
    ops.softcap(head(ops, config, norm(ops.select(h), "model.final_norm")), config.logits_soft_cap)


def _embedding_scale(size: int) -> float:
    """The square root of the size, rounded to bf16 as the model was trained with."""
    bits = np.array(math.sqrt(size), np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return float(rounded.astype(np.uint32).view(np.float32))


def _recurrence(config: Config, ops: Recorder, x: Value, module: str, act: str) -> Value:
    """`out(rg_lru(conv(x)) * activation(y))`, where `x` and `y` are projections."""
    width, heads = config.width, config.num_attention_heads
    gate = ops.linear(x, f"{module}.linear_y", width, bias=True)
    x = ops.linear(x, f"{module}.linear_x", width, bias=True)
    x = ops.short_conv(x, f"{module}.conv_1d", config.conv1d_width, bias=True)
    size = width // heads
    parts = [ops.slice(x, size * number, size * (number + 1)) for number in range(heads)]

    def of_heads(name: str) -> Value:
        gates = (ops.linear(part, f"{name}.{number}", size, bias=True) for number, part in enumerate(parts))
        return reduce(ops.append, gates)

    lru = f"{module}.rg_lru"
    y = ops.rg_lru(x, of_heads(f"{lru}.input_gate"), of_heads(f"{lru}.recurrent_gate"), lru)
    return ops.linear(ops.gated(gate, y, act), f"{module}.linear_out", config.hidden_size, bias=True)
