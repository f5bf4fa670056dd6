"""Layers of Mamba-2, and the fields of config.json that describe them: what the families in `hybrid/` share.

`quantkit.models.decoder` has the parts that most decoders are put together from.

Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(DecoderConfig):
    """The fields of families with Mamba-2 layers, as most of them spell them."""

    hidden_act: str = "silu"
    mamba_n_heads: int = 128
    mamba_d_head: Any = "auto"
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = bounded(4, minimum=2, maximum=8)
    mamba_expand: int = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: list[Any] | None = None

    @property
    def mamba_act(self) -> str:
        """Activation of the convolution of a Mamba-2 layer."""
        return self.hidden_act

    @property
    def mamba_eps(self) -> float:
        """Of the norm of a Mamba-2 layer."""
        return self.rms_norm_eps

    @property
    def mamba_columns(self) -> int:
        """Columns of the heads of a Mamba-2 layer, all together."""
        return self.mamba_expand * self.hidden_size

    @property
    def mamba_head_size(self) -> int:
        """Channels of a head of a Mamba-2 layer."""
        return self.mamba_columns // self.mamba_n_heads

    @property
    def step_limits(self) -> tuple[float, float]:
        """The smallest and the largest step of a state; transformers writes infinity as an object."""
        limits = [math.inf if limit == {"__float__": "Infinity"} else limit for limit in self.time_step_limit or ()]
        if not limits:
            return 0.0, math.inf
        if (
            len(limits) != 2
            or not all(type(limit) in (int, float) for limit in limits)
            or not 0 <= limits[0] < limits[1]
        ):
            raise CheckpointError(
                f"config.json: time_step_limit is {shown(self.time_step_limit)}, not a smallest and a largest step"
            )
        return float(limits[0]), float(limits[1])

    def _check_heads(self) -> None:
        super()._check_heads()
        self._check_mamba()

    def _check_mamba(self) -> None:
        heads, size, groups = self.mamba_n_heads, self.mamba_d_head, self.mamba_n_groups
        if self.mamba_columns % heads or size not in (None, "auto", self.mamba_head_size):
            raise CheckpointError(
                f"config.json: {heads} Mamba heads of {shown(size)} channels do not make {self.mamba_columns} columns"
            )
        if heads % groups:
            raise CheckpointError(f"config.json: {heads} Mamba heads do not divide into {groups} groups")


@dataclass(frozen=True)
class Mamba2:
    """A layer of Mamba-2: a short convolution, a state for each head, a gate and a norm.

    Checkpoints store its first product in one matrix, `STORED`.

    Attributes
    ----------
    ops : Recorder
    config : Mamba2Config
    norm : {"after", "before", "none"}
        Whether the norm stands behind the gate, before it, or nowhere.
    output_bias : bool
        Whether `out_proj` has a bias.
    multipliers : tuple of float, optional
        Of the columns of the gate, of the heads, of `B`, of `C` and of the steps, before anything else is done to them.
    """

    ops: Recorder
    config: Mamba2Config
    norm: Literal["after", "before", "none"] = "after"
    output_bias: bool = False
    multipliers: tuple[float, ...] = ()

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer -> `[T, x.columns]`."""
        ops, config = self.ops, self.config
        columns, states = config.mamba_columns, config.mamba_n_groups * config.mamba_d_state
        bias = config.mamba_proj_bias
        gate = ops.linear(x, f"{module}.in_proj.gate", columns, bias=bias)
        inputs = ops.linear(x, f"{module}.in_proj.inputs", columns + 2 * states, bias=bias)
        steps = ops.linear(x, f"{module}.in_proj.steps", config.mamba_n_heads, bias=bias)
        if self.multipliers:
            gate_factor, *factors, step_factor = self.multipliers
            parts = zip(factors, (columns, states, states), strict=True)
            gate, steps = ops.scale(gate, gate_factor), ops.scale(steps, step_factor)
            inputs = ops.scale_columns(inputs, tuple(factor for factor, count in parts for _ in range(count)))
        act = activation("hidden_act", config.mamba_act)
        inputs = ops.short_conv(
            inputs, f"{module}.conv1d", config.mamba_d_conv, bias=config.mamba_conv_bias, activation=act
        )
        y = ops.ssd(
            inputs,
            steps,
            module,
            head_dim=config.mamba_head_size,
            groups=config.mamba_n_groups,
            limits=config.step_limits,
        )
        return ops.linear(self._gated(y, gate, module), f"{module}.out_proj", x.columns, bias=self.output_bias)

    def _gated(self, y: Value, gate: Value, module: str) -> Value:
        """`y` by its gate, normalized by groups of heads."""
        ops, size = self.ops, y.columns // self.config.mamba_n_groups
        norm = partial(
            ops.rms_norm, module=f"{module}.norm", eps=self.config.mamba_eps, size=size, weight_shape=(y.columns,)
        )
        if self.norm == "before":
            return ops.gated(gate, norm(y), "silu")
        y = ops.gated(gate, y, "silu")
        return norm(y) if self.norm == "after" else y


STORED = (Fused("in_proj", ("in_proj.gate", "in_proj.inputs", "in_proj.steps")),)


def layer_kinds(layer_types: list[Any], layers: int, known: Mapping[str, str]) -> list[str]:
    """Return what each layer is, by what a config calls it -> the family's own name; raises for any other name."""
    if len(layer_types) != layers:
        raise CheckpointError(f"config.json: layer_types has {len(layer_types)} entries for {layers} layers")
    for kind in layer_types:
        if not isinstance(kind, str) or kind not in known:
            raise UnsupportedError(f"config.json: layer_types has {shown(kind)}; supported are {', '.join(known)}")
    return [known[kind] for kind in layer_types]
