"""What models with a gated delta rule have in common: the fields of their configs, and the layer itself.

Of their layers, most are such layers, whose state has one size however long the text is; the others have attention.
`qwen3_next.py` and `olmo_hybrid.py` have the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, bounded, checked_layers
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder

_LAYER_TYPES = ("linear_attention", "full_attention")


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"
    attention_bias: bool = False
    layer_types: list[Any] | None = None
    full_attention_interval: int = 4
    linear_conv_kernel_dim: int = bounded(4, minimum=2, maximum=8)
    linear_num_key_heads: int | None = bounded(16, maximum=1024)
    linear_num_value_heads: int | None = bounded(32, maximum=1024)
    linear_key_head_dim: int | None = bounded(128, maximum=1024)
    linear_value_head_dim: int | None = bounded(128, maximum=1024)

    @property
    def key_heads(self) -> int:
        """Heads of the queries of a delta rule, and of its keys."""
        return self.linear_num_key_heads or self.num_attention_heads

    @property
    def value_heads(self) -> int:
        """Heads of its values, each with a state."""
        return self.linear_num_value_heads or self.num_attention_heads

    @property
    def key_size(self) -> int:
        """Channels of a query or a key."""
        return self.linear_key_head_dim or self.hidden_size // self.key_heads

    @property
    def value_size(self) -> int:
        """Channels of a value."""
        return self.linear_value_head_dim or 2 * self.key_size

    @property
    def values_per_key(self) -> int:
        """Channels of all the values that share a key."""
        return self.value_heads // self.key_heads * self.value_size

    @property
    def key_columns(self) -> int:
        """Columns of the queries of a delta rule, all heads together."""
        return self.key_heads * self.key_size

    @property
    def value_columns(self) -> int:
        """Columns of its values, all heads together."""
        return self.value_heads * self.value_size

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each layer has attention; by default every layer whose number `full_attention_interval` divides."""
        layers, full = range(1, self.num_hidden_layers + 1), self.full_attention_interval
        types = self.layer_types or [_LAYER_TYPES[number % full == 0] for number in layers]
        return tuple(kind == "full_attention" for kind in checked_layers(types, _LAYER_TYPES, len(layers)))

    def _check_heads(self) -> None:
        super()._check_heads()
        if self.value_heads % self.key_heads:
            raise CheckpointError(
                f"config.json: linear_num_value_heads {self.value_heads} is no multiple of linear_num_key_heads "
                f"{self.key_heads}"
            )


@dataclass(frozen=True)
class DeltaNet:
    """A layer with a gated delta rule, between a short convolution and a gate.

    Attributes
    ----------
    ops : Recorder
    config : DeltaNetConfig
    eps : float
        Of the norm behind the delta rule.
    factor : float
        As of `Recorder.delta_rule`.
    """

    ops: Recorder
    config: DeltaNetConfig
    eps: float
    factor: float = 1.0

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer -> `[T, x.columns]`."""
        ops, config = self.ops, self.config
        columns = 2 * config.key_columns + config.value_columns
        y = ops.short_conv(
            ops.linear(x, f"{module}.in_proj_qkv", columns),
            f"{module}.conv1d",
            config.linear_conv_kernel_dim,
            activation=activation("hidden_act", config.hidden_act),
        )
        y = ops.delta_rule(
            y,
            ops.linear(x, f"{module}.in_proj_a", config.value_heads),
            ops.linear(x, f"{module}.in_proj_b", config.value_heads),
            module,
            key_heads=config.key_heads,
            key_dim=config.key_size,
            value_dim=config.value_size,
            factor=self.factor,
        )
        y = ops.rms_norm(y, f"{module}.norm", self.eps, size=config.value_size)
        y = ops.gated(ops.linear(x, f"{module}.in_proj_z", config.value_columns), y, "silu")
        return ops.linear(y, f"{module}.out_proj", x.columns)
