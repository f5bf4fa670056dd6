"""Falcon-H1: each layer has attention and Mamba-2 beside each other, and nearly everything has a factor.

Zuo et al., "Falcon-H1: A Family of Hybrid-Head Language Models Redefining Efficiency and Performance", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from quantkit.errors import CheckpointError
from quantkit.models.config import activation, shown
from quantkit.models.decoder import Attention, embed, head, rotation
from quantkit.models.decoder.state_space import Mamba2, Mamba2Config
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(Mamba2Config):
    """`config.json` of model type `falcon_h1`."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    projectors_bias: bool = False
    mamba_d_ssm: int | None = 1024
    mamba_rms_norm: bool = False
    mamba_norm_before_gate: bool = True
    embedding_multiplier: float = 1.0
    lm_head_multiplier: float = 1.0
    key_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    ssm_multipliers: list[Any] | None = None
    mlp_multipliers: list[Any] | None = None

    @property
    def mamba_columns(self) -> int:
        return self.mamba_d_ssm or super().mamba_columns


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.rms_norm, eps=config.rms_norm_eps), config.attention_bias
    # Keys are multiplied with queries alone.
    scale = config.head_size**-0.5 * config.key_multiplier
    attention = Attention(ops, config, scale, qkv_bias=bias, output_bias=bias)
    place: Literal["before", "after"] = "before" if config.mamba_norm_before_gate else "after"
    factors = _factors("ssm_multipliers", config.ssm_multipliers, 5)
    mamba = Mamba2(
        ops,
        config,
        norm=place if config.mamba_rms_norm else "none",
        output_bias=config.projectors_bias,
        multipliers=() if set(factors) == {1.0} else factors,
    )
    angles = rotation(ops, config, parameters_of(config))
    h = ops.scale(embed(ops, config), config.embedding_multiplier)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        y = mamba(ops.scale(x, config.ssm_in_multiplier), f"{name}.mamba")
        h = ops.add(h, ops.scale(y, config.ssm_out_multiplier))
        y = attention(ops.scale(x, config.attention_in_multiplier), f"{name}.self_attn", rotation=angles)
        h = ops.add(h, ops.scale(y, config.attention_out_multiplier))
        h = ops.add(h, _mlp(config, ops, norm(h, f"{name}.pre_ff_layernorm"), f"{name}.feed_forward"))
    logits = head(ops, config, norm(ops.select(h), "model.final_layernorm"))
    ops.scale(logits, config.lm_head_multiplier)


def _mlp(config: Config, ops: Recorder, x: Value, module: str) -> Value:
    """A gated MLP whose gate and result have factors."""
    gate_factor, down_factor = _factors("mlp_multipliers", config.mlp_multipliers, 2)
    gate = ops.linear(x, f"{module}.gate_proj", config.intermediate_size, bias=config.mlp_bias)
    up = ops.linear(x, f"{module}.up_proj", config.intermediate_size, bias=config.mlp_bias)
    gated = ops.gated(ops.scale(gate, gate_factor), up, activation("hidden_act", config.hidden_act))
    return ops.scale(ops.linear(gated, f"{module}.down_proj", x.columns, bias=config.mlp_bias), down_factor)


def _factors(field: str, values: list[Any] | None, count: int) -> tuple[float, ...]:
    """Return a config's list of `count` factors, by default ones."""
    factors = [1.0] * count if values is None else values
    if len(factors) != count or not all(type(factor) in (int, float) for factor in factors):
        raise CheckpointError(f"config.json: {field} is {shown(values)}, not a list of {count} numbers")
    return tuple(map(float, factors))
