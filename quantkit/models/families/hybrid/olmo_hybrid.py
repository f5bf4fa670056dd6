"""OLMo Hybrid: three of four layers have a gated delta rule, the others attention as in OLMo 3, perhaps unrotated.

Norms stand before delta rules and their MLPs, but behind attention and its MLPs. A delta rule may overshoot what it
replaces, up to twice as far.

OLMo Team, "Olmo Hybrid: From Theory to Practice and Back", 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quantkit.models.config import activation
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
from quantkit.models.decoder.delta_net import DeltaNet, DeltaNetConfig
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused, Joined

NORM_EPS = 1e-5
"""Of the norms behind delta rules, whatever the config says of others."""


@dataclass(frozen=True, kw_only=True)
class Config(DeltaNetConfig):
    """`config.json` of model type `olmo_hybrid`."""

    max_position_embeddings: int = 65_536
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_allow_neg_eigval: bool = True

    @property
    def key_size(self) -> int:
        return self.linear_key_head_dim or int(0.75 * self.hidden_size / self.key_heads)

    @property
    def turns(self) -> bool:
        """Whether attention rotates its heads: unless the config says in so many words that there is no base."""
        return (self.rope_parameters or {}).get("rope_theta", self.default_theta) is not None

    @property
    def attends(self) -> tuple[bool, ...]:
        found = super().attends
        # By default, one layer has attention, however few there are.
        return found if self.layer_types or any(found) else (*found[:-1], True)


_QKV = (("q", "key_columns"), ("k", "key_columns"), ("v", "value_columns"))
STORED = (
    Joined("linear_attn.in_proj_qkv", tuple((f"linear_attn.{name}_proj", rows) for name, rows in _QKV)),
    Joined("linear_attn.conv1d", tuple((f"linear_attn.{name}_conv1d", rows) for name, rows in _QKV)),
    Fused("linear_attn.a_proj", ("linear_attn.in_proj_a",)),
    Fused("linear_attn.b_proj", ("linear_attn.in_proj_b",)),
    Fused("linear_attn.g_proj", ("linear_attn.in_proj_z",)),
    Fused("linear_attn.o_norm", ("linear_attn.norm",)),
    Fused("linear_attn.o_proj", ("linear_attn.out_proj",)),
    Fused("attention_layer_norm", ("input_layernorm",)),
    Fused("feedforward_layer_norm", ("post_attention_layernorm",)),
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.rms_norm, eps=config.rms_norm_eps), config.attention_bias
    attention = Attention(ops, config, config.head_size**-0.5, norm=norm, qkv_bias=bias, output_bias=bias)
    delta_net = DeltaNet(ops, config, NORM_EPS, factor=2.0 if config.linear_allow_neg_eigval else 1.0)
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))

    angles = rotation(ops, config, parameters_of(config)) if config.turns else None
    h = embed(ops, config)
    for layer, attends in enumerate(config.attends):
        name = f"model.layers.{layer}"
        if attends:
            x = attention(h, f"{name}.self_attn", rotation=angles)
            h = ops.add(h, norm(x, f"{name}.post_attention_layernorm"))
            h = ops.add(h, norm(mlp(h, f"{name}.mlp"), f"{name}.post_feedforward_layernorm"))
        else:
            h = ops.add(h, delta_net(norm(h, f"{name}.input_layernorm"), f"{name}.linear_attn"))
            h = ops.add(h, mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "model.norm"))
