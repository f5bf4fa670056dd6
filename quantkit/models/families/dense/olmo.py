"""OLMo 1 to 3, FlexOlmo, which is OLMo 2 with experts, and EXAONE 4.

OLMo 1 has norms before attention and MLP, LayerNorms without weights. In the others, norms stand after attention and
MLP, and queries and keys have norms as well. OLMo normalizes the queries of all heads together, and so the keys; EXAONE
each head. Three of four layers of OLMo 3 and of EXAONE 4 see a window; the fourth sees all, and EXAONE leaves its heads
unrotated.

Groeneveld et al., "OLMo", 2024. OLMo Team, "2 OLMo 2 Furious", 2024, and "Olmo 3", 2025. LG AI Research, "EXAONE 4.0",
2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, every_nth_full, shown
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Router, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import beside, parameters_by_type, parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class OlmoConfig(Config):
    """`config.json` of model type `olmo`."""

    attention_bias: bool = False
    clip_qkv: float | None = None


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(Config):
    """`config.json` of model type `olmo2`."""

    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(Olmo2Config):
    """`config.json` of model type `olmo3`."""

    default_theta: ClassVar[float] = 500_000.0

    sliding_window: int | None = 4096
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        return _windows(self, 4, self.layer_types, self.sliding_window)

    def rope_of(self, layer_type: str) -> dict[str, Any]:
        """Rope parameters of one type of layer; what `rope_scaling` says is for full attention alone."""
        scaling = self.rope_scaling if layer_type == "full_attention" else None
        others = {"at the top level": beside(self), "in rope_scaling": scaling}
        return {"rope_theta": self.default_theta, **parameters_by_type(self, layer_type, others)}


@dataclass(frozen=True, kw_only=True)
class FlexOlmoConfig(Olmo2Config):
    """`config.json` of model type `flex_olmo`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"num_local_experts": "num_experts"})
    default_theta: ClassVar[float] = 500_000.0

    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    num_experts: int = bounded(7, maximum=1024)
    num_experts_per_tok: int = 5
    norm_topk_prob: bool = False


@dataclass(frozen=True, kw_only=True)
class Exaone4Config(Config):
    """`config.json` of model type `exaone4`."""

    num_key_value_heads: int | None = 32
    sliding_window: int | None = 4096
    sliding_window_pattern: Any = 4
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        full = self.sliding_window_pattern  # or a text such as "LLLG", beside `layer_types` that say the same
        if self.layer_types is None and full is not None and (type(full) is not int or full < 1):
            raise CheckpointError(f"config.json: sliding_window_pattern is {shown(full)}, not a whole number from 1 up")
        return _windows(self, full, self.layer_types, self.sliding_window)

    @property
    def rotated(self) -> tuple[bool, ...]:
        return tuple(self.sliding_window is None or window > 0 for window in self.windows)


def olmo(config: OlmoConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, module=None, eps=1e-5)
    bias, scale = config.attention_bias, config.head_size**-0.5
    attention = Attention(ops, config, scale=scale, qkv_bias=bias, output_bias=bias, clip=config.clip_qkv)
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))

    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = ops.add(h, attention(norm(h), f"{name}.self_attn", rotation=angles))
        h = ops.add(h, mlp(norm(h), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h)))


def olmo2(config: Olmo2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    angles = rotation(ops, config, parameters_of(config))
    _forward(config, ops, angles, angles, bias=config.attention_bias)


def flex_olmo(config: FlexOlmoConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    router = Router(ops, config.num_experts, config.num_experts_per_tok, normalize=config.norm_topk_prob)
    gated = partial(ops.gated, activation=activation("hidden_act", config.hidden_act))
    angles = rotation(ops, config, parameters_of(config))
    experts = Experts(ops, router, config.intermediate_size, gated)
    _forward(config, ops, angles, angles, bias=config.attention_bias, feed_forward=experts)


def olmo3(config: Olmo3Config, ops: Recorder) -> None:
    """Record the forward pass."""
    full = rotation(ops, config, config.rope_of("full_attention"))
    local = rotation(ops, config, config.rope_of("sliding_attention"))
    _forward(config, ops, full, local, bias=config.attention_bias)


def exaone4(config: Exaone4Config, ops: Recorder) -> None:
    """Record the forward pass."""
    angles = rotation(ops, config, parameters_of(config))
    _forward(config, ops, angles, angles, norm_size=config.head_size)


def _windows(config: Config, full: int | None, layer_types: list[Any] | None, window: int | None) -> tuple[int, ...]:
    """Each layer's window, where by default every layer whose number divides by `full` has none."""
    if layer_types is None and window is not None and full is not None:
        layer_types = every_nth_full(full, config.num_hidden_layers)
    return attention_windows(layer_types, ["full_attention"] * config.num_hidden_layers, window)


def _forward(
    config: Config,
    ops: Recorder,
    full: Value,
    local: Value,
    *,
    bias: bool = False,
    norm_size: int | None = None,
    feed_forward: FeedForward | None = None,
) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    head_norm = partial(norm, size=norm_size)
    scale = config.head_size**-0.5
    attention = Attention(ops, config, scale=scale, norm=head_norm, qkv_bias=bias, output_bias=bias)
    mlp = feed_forward or GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))

    h = embed(ops, config)
    for layer, (window, rotated) in enumerate(zip(config.windows, config.rotated, strict=True)):
        name, angles = f"model.layers.{layer}", local if window else full
        x = attention(h, f"{name}.self_attn", rotation=angles if rotated else None, window=window)
        h = ops.add(h, norm(x, f"{name}.post_attention_layernorm"))
        h = ops.add(h, norm(mlp(h, f"{name}.mlp"), f"{name}.post_feedforward_layernorm"))
    head(ops, config, norm(ops.select(h), "model.norm"))
