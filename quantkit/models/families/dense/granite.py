"""Granite: Llama with four factors, of the embedding, the scores, what a layer adds, and the logits.

Granite MoE is the same with mixtures of experts, stored as stacks; beside them there may be one for all tokens. Granite
SWA has sinks, windows, and angles of its own for each layer. HyperCLOVA X normalizes what attention and MLP give, too.

IBM Research, "Granite 3.0 Language Models", 2024. NAVER Cloud, "HyperCLOVA X THINK Technical Report", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, is_positive, shown
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Norm, Router, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class ScaledConfig(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    @property
    def mlp(self) -> tuple[int, str, bool]:
        """What a plain MLP is made of: its size, its activation, and whether it has biases."""
        return self.intermediate_size, activation("hidden_act", self.hidden_act), self.mlp_bias


@dataclass(frozen=True, kw_only=True)
class Config(ScaledConfig):
    """`config.json` of model type `granite`."""

    attention_multiplier: float = 1.0


@dataclass(frozen=True, kw_only=True)
class WindowConfig(Config):
    """The fields that dense models and mixtures with windows have."""

    sliding_window: int | None = 128
    layer_types: list[Any] | None = None
    layer_rope_theta: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        kinds = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(self.num_hidden_layers)]
        return attention_windows(self.layer_types, kinds, self.sliding_window)

    def thetas(self) -> list[float]:
        """The base of each layer's rotation, 0 where heads stay unrotated."""
        layers, thetas = self.num_hidden_layers, self.layer_rope_theta
        if thetas is None:
            return [parameters_of(self)["rope_theta"]] * layers
        if len(thetas) != layers or not all(theta == 0 or is_positive(theta) for theta in thetas):
            raise CheckpointError(f"config.json: layer_rope_theta is {shown(thetas)}, not a base for {layers} layers")
        return thetas


@dataclass(frozen=True, kw_only=True)
class SwaConfig(WindowConfig):
    """`config.json` of model type `granite_swa`."""

    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class HyperclovaxConfig(ScaledConfig):
    """`config.json` of model type `hyperclovax`, whose `logits_scaling` multiplies."""

    attention_multiplier: float | None = None
    use_post_norm: bool = True


@dataclass(frozen=True, kw_only=True)
class MoeConfig(Config):
    """`config.json` of model type `granitemoe`."""

    num_local_experts: int = bounded(8, maximum=1024)
    num_experts_per_tok: int = 2


@dataclass(frozen=True, kw_only=True)
class MoeSharedConfig(MoeConfig):
    """`config.json` of model type `granitemoeshared`."""

    shared_intermediate_size: int = bounded(0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class MoeSwaConfig(MoeSharedConfig, WindowConfig):
    """`config.json` of model type `granitemoe_swa`."""


MOE_STORED = (
    Fused("input_linear", ("experts.*.gate_proj", "experts.*.up_proj")),
    Fused("output_linear", ("experts.*.down_proj",)),
    Fused("shared_mlp.input_linear", ("shared_mlp.gate_proj", "shared_mlp.up_proj")),
    Fused("shared_mlp.output_linear", ("shared_mlp.down_proj",)),
)
MOE_SWA_STORED = (
    Fused("router", ("router.layer",)),
    Fused("experts.gate_up_proj", ("experts.*.gate_proj", "experts.*.up_proj"), weight=""),
    Fused("experts.down_proj", ("experts.*.down_proj",), weight=""),
    *MOE_STORED[2:],
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass of a dense model."""
    _granite(config, ops, GatedMLP(ops, *config.mlp), "mlp")


def swa(config: SwaConfig, ops: Recorder) -> None:
    """Record the forward pass of a dense model with windows and sinks."""
    layers = _Layers(GatedMLP(ops, *config.mlp), _rotations(config, ops), sinks=True)
    _forward(config, ops, layers, config.attention_multiplier, 1 / config.logits_scaling)


def hyperclovax(config: HyperclovaxConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps) if config.use_post_norm else None
    layers = _Layers(GatedMLP(ops, *config.mlp), rotations=_same(config, ops), post_norm=norm)
    scale = config.attention_multiplier or config.head_size**-0.5
    _forward(config, ops, layers, scale, config.logits_scaling)


def moe(config: MoeConfig, ops: Recorder) -> None:
    """Record the forward pass of a mixture of experts."""
    _granite(config, ops, _experts(config, ops), "block_sparse_moe")


def moe_shared(config: MoeSharedConfig, ops: Recorder) -> None:
    """Record the forward pass of a mixture of experts with another one for all tokens."""
    _granite(config, ops, _with_shared(config, ops), "block_sparse_moe")


def moe_swa(config: MoeSwaConfig, ops: Recorder) -> None:
    """Record the forward pass of a mixture of experts with windows and sinks."""
    layers = _Layers(_with_shared(config, ops), _rotations(config, ops), "block_sparse_moe", sinks=True)
    _forward(config, ops, layers, config.attention_multiplier, 1 / config.logits_scaling)


def _with_shared(config: MoeSharedConfig, ops: Recorder) -> FeedForward:
    """Experts, and beside them one for all tokens, if there is one."""
    experts = _experts(config, ops)
    shared = GatedMLP(ops, config.shared_intermediate_size, activation("hidden_act", config.hidden_act))

    def both(x: Value, module: str) -> Value:
        return ops.add(experts(x, module), shared(x, f"{module.rpartition('.')[0]}.shared_mlp"))

    return both if config.shared_intermediate_size else experts


def _experts(config: MoeConfig, ops: Recorder) -> Experts:
    router = Router(
        ops,
        config.num_local_experts,
        config.num_experts_per_tok,
        name="router.layer",
        scoring="softmax_of_chosen",
        normalize=False,
    )
    act = activation("hidden_act", config.hidden_act)
    return Experts(ops, router, config.intermediate_size, partial(ops.gated, activation=act))


class _Layers(NamedTuple):
    """What layers consist of; a norm behind attention and MLP may be missing."""

    feed_forward: FeedForward
    rotations: Sequence[Value | None]
    module: str = "mlp"
    sinks: bool = False
    post_norm: Norm | None = None


def _rotations(config: WindowConfig, ops: Recorder) -> list[Value | None]:
    """The angles of each layer."""
    thetas = config.thetas()
    angles = {theta: rotation(ops, config, parameters_of(config) | {"rope_theta": theta}) for theta in {*thetas} - {0}}
    return [angles.get(theta) for theta in thetas]


def _same(config: ScaledConfig, ops: Recorder) -> list[Value]:
    return [rotation(ops, config, parameters_of(config))] * config.num_hidden_layers


def _granite(config: Config, ops: Recorder, feed_forward: FeedForward, module: str) -> None:
    layers = _Layers(feed_forward, _same(config, ops), module)
    _forward(config, ops, layers, config.attention_multiplier, 1 / config.logits_scaling)


def _forward(config: ScaledConfig, ops: Recorder, layers: _Layers, scale: float, logit_factor: float) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    post_norm = layers.post_norm or (lambda x, module: x)
    bias = config.attention_bias
    attention = Attention(ops, config, scale, qkv_bias=bias, output_bias=bias, sinks=layers.sinks)
    h = ops.scale(embed(ops, config), config.embedding_multiplier)
    for layer, (angles, window) in enumerate(zip(layers.rotations, config.windows, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = post_norm(attention(x, f"{name}.self_attn", rotation=angles, window=window), f"{name}.post_norm1")
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
        x = layers.feed_forward(norm(h, f"{name}.post_attention_layernorm"), f"{name}.{layers.module}")
        h = ops.add(h, ops.scale(post_norm(x, f"{name}.post_norm2"), config.residual_multiplier))
    ops.scale(head(ops, config, norm(ops.select(h), "model.norm")), logit_factor)
