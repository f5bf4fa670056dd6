"""Mamba, which has no attention at all; Falcon Mamba; and Jamba, which has it in a few layers, and experts in others.

They differ in norms: Falcon Mamba normalizes steps, `B` and `C`, Jamba with weights.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023. Zuo et al., "Falcon Mamba: The
First Competitive Attention-free 7B Language Model", 2024. Lieber et al., "Jamba: A Hybrid Transformer-Mamba Language
Model", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Router, embed, head
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused

STORED = (
    Fused("in_proj", ("in_proj.inputs", "in_proj.gate")),
    Fused("x_proj", ("x_proj.steps", "x_proj.bc")),
)


@dataclass(frozen=True, kw_only=True)
class MixerConfig(DecoderConfig):
    """The fields of families with layers of Mamba, as Jamba spells them."""

    hidden_act: str = "silu"
    mamba_d_state: int = bounded(16, maximum=256)
    mamba_d_conv: int = bounded(4, minimum=2, maximum=8)
    mamba_expand: int = 2
    mamba_dt_rank: Any = "auto"
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    @property
    def mamba_columns(self) -> int:
        """Channels of a layer."""
        return self.mamba_expand * self.hidden_size

    @property
    def mamba_rank(self) -> int:
        """Columns that steps are made of."""
        rank = self.mamba_dt_rank
        if rank == "auto":
            return -(-self.hidden_size // 16)
        if type(rank) is not int or not 0 < rank < 2**31:
            raise CheckpointError(f"config.json: the rank of time steps is {shown(rank)}, not auto or a whole number")
        return rank


@dataclass(frozen=True, kw_only=True)
class Config(MixerConfig):
    """`config.json` of model type `mamba`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "state_size": "mamba_d_state",
            "conv_kernel": "mamba_d_conv",
            "expand": "mamba_expand",
            "time_step_rank": "mamba_dt_rank",
            "use_conv_bias": "mamba_conv_bias",
            "use_bias": "mamba_proj_bias",
            "layer_norm_epsilon": "rms_norm_eps",
        }
    )

    num_hidden_layers: int = bounded(32, maximum=1000)
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    intermediate_size: int = 0
    """Channels of a layer; where a config does not say, as many as `expand` makes."""
    num_attention_heads: int = 1
    max_position_embeddings: int = 2**20
    """Nothing depends on a position."""

    @property
    def mamba_columns(self) -> int:
        return self.intermediate_size or super().mamba_columns

    def _check_heads(self) -> None:
        """There are none."""


@dataclass(frozen=True, kw_only=True)
class FalconConfig(Config):
    """`config.json` of model type `falcon_mamba`."""

    mixer_rms_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class JambaConfig(MixerConfig):
    """`config.json` of model type `jamba`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"num_local_experts": "num_experts"})

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 262_144
    num_experts: int = bounded(16, maximum=1024)
    num_experts_per_tok: int = 2
    expert_layer_period: int = 2
    expert_layer_offset: int = bounded(1, minimum=0)
    attn_layer_period: int = 8
    attn_layer_offset: int = bounded(4, minimum=0)

    def chosen(self, kind: str) -> tuple[bool, ...]:
        """Whether each layer is one of those that `attn_layer_period` or `expert_layer_period` counts."""
        period, offset = getattr(self, f"{kind}_layer_period"), getattr(self, f"{kind}_layer_offset")
        if offset >= period:
            raise CheckpointError(f"config.json: {kind}_layer_offset {offset} is not below the period, {period}")
        return tuple(layer % period == offset for layer in range(self.num_hidden_layers))


@dataclass(frozen=True)
class Mamba:
    """A layer of Mamba: a short convolution, a few numbers of state for each channel, and a gate.

    Attributes
    ----------
    ops : Recorder
    config : MixerConfig
    eps : float, optional
        Of the norms of steps, `B` and `C`; None: there are no such norms.
    weighted : bool
        Whether these norms have weights.
    """

    ops: Recorder
    config: MixerConfig
    eps: float | None = None
    weighted: bool = False

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer -> `[T, x.columns]`."""
        ops, config = self.ops, self.config
        columns, states, bias = config.mamba_columns, config.mamba_d_state, config.mamba_proj_bias
        inputs = ops.linear(x, f"{module}.in_proj.inputs", columns, bias=bias)
        gate = ops.linear(x, f"{module}.in_proj.gate", columns, bias=bias)
        act = activation("hidden_act", config.hidden_act)
        inputs = ops.short_conv(
            inputs, f"{module}.conv1d", config.mamba_d_conv, bias=config.mamba_conv_bias, activation=act
        )
        steps = ops.linear(inputs, f"{module}.x_proj.steps", config.mamba_rank)
        bc = ops.linear(inputs, f"{module}.x_proj.bc", 2 * states)
        if self.eps is not None:
            steps = self._norm(steps, f"{module}.dt_layernorm")
            b, c = ops.slice(bc, 0, states), ops.slice(bc, states, 2 * states)
            bc = ops.append(self._norm(b, f"{module}.b_layernorm"), self._norm(c, f"{module}.c_layernorm"))
        y = ops.selective_scan(inputs, ops.linear(steps, f"{module}.dt_proj", columns, bias=True), bc, module)
        return ops.linear(ops.gated(gate, y, "silu"), f"{module}.out_proj", x.columns, bias=bias)

    def _norm(self, x: Value, module: str) -> Value:
        assert self.eps is not None
        return self.ops.rms_norm(x, module if self.weighted else None, self.eps)


def mamba(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _without_attention(config, ops, Mamba(ops, config))


def falcon_mamba(config: FalconConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _without_attention(config, ops, Mamba(ops, config, eps=config.mixer_rms_eps))


def _without_attention(config: Config, ops: Recorder, mixer: Mamba) -> None:
    norm, embedding = partial(ops.rms_norm, eps=config.rms_norm_eps), "backbone.embeddings"
    h = embed(ops, config, embedding)
    for layer in range(config.num_hidden_layers):
        name = f"backbone.layers.{layer}"
        h = ops.add(h, mixer(norm(h, f"{name}.norm"), f"{name}.mixer"))
    head(ops, config, norm(ops.select(h), "backbone.norm_f"), embedding)


def jamba(config: JambaConfig, ops: Recorder) -> None:
    """Record the forward pass; its heads are not rotated."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention = Attention(ops, config, config.head_size**-0.5)
    mixer = Mamba(ops, config, eps=config.rms_norm_eps, weighted=True)
    act, size = activation("hidden_act", config.hidden_act), config.intermediate_size
    plain: FeedForward = GatedMLP(ops, size, act)
    experts = plain
    if config.num_experts > 1:
        router = Router(ops, config.num_experts, config.num_experts_per_tok, name="router", normalize=False)
        experts = Experts(ops, router, size, partial(ops.gated, activation=act))
    h = embed(ops, config)
    for layer, (attends, sparse) in enumerate(zip(config.chosen("attn"), config.chosen("expert"), strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = attention(x, f"{name}.self_attn", rotation=None) if attends else mixer(x, f"{name}.mamba")
        h = ops.add(h, x)
        feed_forward = experts if sparse else plain
        h = ops.add(h, feed_forward(norm(h, f"{name}.pre_ff_layernorm"), f"{name}.feed_forward"))
    head(ops, config, norm(ops.select(h), "model.final_layernorm"))
