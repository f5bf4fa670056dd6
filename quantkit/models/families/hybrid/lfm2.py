"""LFM2 and LFM3: most layers are gated short convolutions, some attention; LFM2's mixture of experts as well.

A convolution layer projects to three: `b` multiplies the input of the convolution, `c` its output. The checkpoint
stores the three as one. Heads are normalized. In the mixture of experts, all layers but the first have experts, chosen
by sigmoids and a bias. LFM3 also normalizes what layers add, has windows, and multiplies each head by a gate.

Liquid AI, "LFM2 Technical Report", 2025 (arXiv:2511.23404).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import LAYER_TYPES, DecoderConfig, bounded, checked_layers, shown
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Router, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import beside, parameters_by_type, parameters_of
from quantkit.models.stored import Fused

LFM3_STORED = (
    Fused("conv.in_proj", ("conv.b_proj", "conv.c_proj", "conv.x_proj")),
    Fused("feed_forward.w1", ("feed_forward.gate_proj",)),
    Fused("feed_forward.w2", ("feed_forward.down_proj",)),
    Fused("feed_forward.w3", ("feed_forward.up_proj",)),
)
STORED = (*LFM3_STORED, Fused("self_attn.out_proj", ("self_attn.o_proj",)))
LFM3_ROPE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sliding_attention": {"rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5},
    }
)
"""What a config of LFM3 without rope parameters means."""
LFM3_LAYERS = ("sliding_attention", "conv", "full_attention", "conv")
"""What four layers are, where a config does not say; but for the first of all, a convolution."""


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that both have; their MLPs are `silu`, whatever `hidden_act` says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"hidden_act", "full_attn_idxs"})
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_eps": "rms_norm_eps", "tie_embedding": "tie_word_embeddings"}
    )
    default_theta: ClassVar[float] = 1_000_000.0

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 128_000
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    conv_bias: bool = False
    conv_L_cache: int = bounded(3, minimum=2, maximum=8)
    layer_types: list[Any] | None = None

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each layer is attention, not a convolution."""
        if self.layer_types is None:
            raise CheckpointError("config.json: layer_types is missing")
        kinds = checked_layers(self.layer_types, ("conv", "full_attention"), self.num_hidden_layers)
        return tuple(kind == "full_attention" for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(Config):
    """`config.json` of model type `lfm2`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({**Config.SPELLINGS, "block_ff_dim": "intermediate_size"})

    full_attn_idxs: list[Any] | None = None
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: float | None = 1.0
    block_multiple_of: int = 256

    @property
    def attends(self) -> tuple[bool, ...]:
        layers, attention = range(self.num_hidden_layers), self.full_attn_idxs
        if self.layer_types is not None or attention is None:
            return super().attends if self.layer_types is not None else (True,) * len(layers)
        if not all(type(layer) is int and layer in layers for layer in attention):
            raise CheckpointError(f"config.json: full_attn_idxs is {shown(attention)}, not a list of layers")
        return tuple(layer in attention for layer in layers)

    @property
    def mlp_size(self) -> int:
        """Columns of gate and up: two thirds of what the config says, rounded up."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        size = int(2 * self.intermediate_size / 3)
        if self.block_ffn_dim_multiplier is not None:
            size = int(self.block_ffn_dim_multiplier * size)
            size = -(-size // self.block_multiple_of) * self.block_multiple_of
        if not 0 < size < 2**31:
            raise CheckpointError(
                f"config.json: intermediate_size {self.intermediate_size} and block_ffn_dim_multiplier "
                f"{self.block_ffn_dim_multiplier} make an MLP of {shown(size)} columns"
            )
        return size


@dataclass(frozen=True, kw_only=True)
class Lfm3Config(Config):
    """`config.json` of model type `lfm3`."""

    num_key_value_heads: int | None = 4
    head_dim: int | None = 128
    conv_L_cache: int = bounded(7, minimum=2, maximum=8)
    attention_bias: bool = False
    sliding_window: int | None = 256
    use_sandwich_norm: bool = True
    use_attention_gate: bool = True

    @property
    def kinds(self) -> list[str]:
        """What each layer is."""
        default = ["conv", *(LFM3_LAYERS[layer % 4] for layer in range(1, self.num_hidden_layers))]
        kinds = default if self.layer_types is None else self.layer_types
        kinds = checked_layers(kinds, ("conv", *LAYER_TYPES), self.num_hidden_layers)
        if self.sliding_window is None and "sliding_attention" in kinds:
            raise CheckpointError("config.json: layer_types has sliding_attention, but there is no sliding_window")
        return kinds

    @property
    def attends(self) -> tuple[bool, ...]:
        return tuple(kind != "conv" for kind in self.kinds)

    @property
    def windows(self) -> tuple[int, ...]:
        return tuple(self.sliding_window or 0 if kind == "sliding_attention" else 0 for kind in self.kinds)

    def rope_of(self, layer_type: str) -> dict[str, Any]:
        """Rope parameters of one type of layer."""
        default = {} if self.rope_parameters is not None else {"by default": LFM3_ROPE[layer_type]}
        others = {"at the top level": beside(self), "in rope_scaling": self.rope_scaling}
        return parameters_by_type(self, layer_type, {**others, **default})


@dataclass(frozen=True, kw_only=True)
class MoeConfig(Config):
    """`config.json` of model type `lfm2_moe`."""

    moe_intermediate_size: int = 1792
    num_dense_layers: int = bounded(2, minimum=0)
    num_experts: int = bounded(32, maximum=1024)
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    use_expert_bias: bool = True


def lfm2(config: Lfm2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, [GatedMLP(ops, config.mlp_size, "silu")] * config.num_hidden_layers)


def lfm2_moe(config: MoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    router = Router(
        ops,
        config.num_experts,
        config.num_experts_per_tok,
        correction="expert_bias" if config.use_expert_bias else "",
        scoring="sigmoid",
        normalize=config.norm_topk_prob,
        factor=config.routed_scaling_factor,
    )
    gated, size = partial(ops.gated, activation="silu"), config.moe_intermediate_size
    experts, plain = (
        Experts(ops, router, size, gated, gate="w1", up="w3", down="w2"),
        GatedMLP(ops, config.intermediate_size, "silu"),
    )
    dense = min(config.num_dense_layers, config.num_hidden_layers)
    _forward(config, ops, [plain] * dense + [experts] * (config.num_hidden_layers - dense))


def lfm3(config: Lfm3Config, ops: Recorder) -> None:
    """Record the forward pass."""
    attention = Attention(
        ops,
        config,
        config.head_size**-0.5,
        norm=partial(ops.rms_norm, eps=config.rms_norm_eps, size=config.head_size),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        gate="gate_proj" if config.use_attention_gate else "",
        gate_by_head=True,
    )
    kinds = [kind for kind in LAYER_TYPES if kind in config.kinds]
    angles = {kind: rotation(ops, config, config.rope_of(kind)) for kind in kinds}
    layers: list[FeedForward] = [GatedMLP(ops, config.intermediate_size, "silu")] * config.num_hidden_layers
    rotations = [angles.get(kind) for kind in config.kinds]
    _layers(config, ops, attention, rotations, layers, sandwich=config.use_sandwich_norm)


def _forward(config: Config, ops: Recorder, layers: list[FeedForward]) -> None:
    heads = partial(ops.rms_norm, eps=config.rms_norm_eps, size=config.head_size)
    names = ("q_layernorm", "k_layernorm")
    attention = Attention(ops, config, config.head_size**-0.5, norm=heads, norm_names=names)
    angles = rotation(ops, config, parameters_of(config))
    _layers(config, ops, attention, [angles] * config.num_hidden_layers, layers)


def _layers(
    config: Config,
    ops: Recorder,
    attention: Attention,
    rotations: list[Value | None],
    layers: list[FeedForward],
    *,
    sandwich: bool = False,
) -> None:
    """Record all layers, with an MLP and the angles of each; in a sandwich, what a layer adds is normalized too."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    h = embed(ops, config)
    each = zip(layers, config.attends, config.windows, rotations, strict=True)
    for layer, (feed_forward, attends, window, angles) in enumerate(each):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.operator_norm")
        if attends:
            x = attention(x, f"{name}.self_attn", rotation=angles, window=window)
        else:
            x = _convolution(ops, config, x, f"{name}.conv")
        h = ops.add(h, norm(x, f"{name}.post_operator_norm") if sandwich else x)
        x = feed_forward(norm(h, f"{name}.ffn_norm"), f"{name}.feed_forward")
        h = ops.add(h, norm(x, f"{name}.post_ffn_norm") if sandwich else x)
    head(ops, config, norm(ops.select(h), "model.embedding_norm"))


def _convolution(ops: Recorder, config: Config, x: Value, module: str) -> Value:
    """`out(c * conv(b * x))`, where `b`, `c` and `x` are projections."""
    size, bias = config.hidden_size, config.conv_bias
    b, c, x = (ops.linear(x, f"{module}.{name}_proj", size, bias=bias) for name in "bcx")
    mixed = ops.short_conv(ops.multiply(b, x), f"{module}.conv", config.conv_L_cache, bias=bias)
    return ops.linear(ops.multiply(c, mixed), f"{module}.out_proj", size, bias=bias)
