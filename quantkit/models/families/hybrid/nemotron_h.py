"""Nemotron-H and Nemotron 3: every layer is one thing, Mamba-2, attention, an MLP or a mixture of experts.

Attention rotates nothing. MLPs and experts have no gate but the square of what is positive; experts may work in a
smaller space than the layer, into which and out of which one product leads for all.

NVIDIA, "Nemotron-H: A Family of Accurate and Efficient Hybrid Mamba-Transformer Models", 2025, and "Nemotron 3", 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.models.config import activation, bounded
from quantkit.models.decoder import MLP, Attention, Router, embed, head
from quantkit.models.decoder.state_space import Mamba2, Mamba2Config, layer_kinds
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder

_LAYERS = {
    **{"M": "mamba", "mamba": "mamba", "linear_attention": "mamba"},
    **{"*": "attention", "attention": "attention", "full_attention": "attention"},
    **{"-": "mlp", "mlp": "mlp", "E": "moe", "moe": "moe"},
}


@dataclass(frozen=True, kw_only=True)
class Config(Mamba2Config):
    """`config.json` of model type `nemotron_h`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        ("attention_bias", "mamba_proj_bias", "n_shared_experts", "num_nextn_predict_layers", "sliding_window")
    )
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "mamba_num_heads": "mamba_n_heads",
            "mamba_head_dim": "mamba_d_head",
            "n_groups": "mamba_n_groups",
            "ssm_state_size": "mamba_d_state",
            "conv_kernel": "mamba_d_conv",
            "expand": "mamba_expand",
            "use_conv_bias": "mamba_conv_bias",
            "use_bias": "mamba_proj_bias",
            "mamba_hidden_act": "hidden_act",
            "mamba_dt_limit": "time_step_limit",
            "mamba_dt_min": "time_step_min",
            "layer_norm_epsilon": "rms_norm_eps",
            "layers_block_type": "layer_types",
            "num_local_experts": "n_routed_experts",
        }
    )

    num_hidden_layers: int = bounded(1, maximum=1000)
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    intermediate_size: int = 21_504
    mlp_hidden_act: str = "relu2"
    mlp_bias: bool = False
    mamba_d_head: int = 64
    mamba_n_groups: int = 8
    mamba_d_state: int = 128
    time_step_min: float = 0.001
    hybrid_override_pattern: str | None = None
    layer_types: list[Any] | None = None
    n_routed_experts: int = bounded(8, maximum=1024)
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 7688
    moe_shared_expert_intermediate_size: int = 7688
    moe_latent_size: int | None = None
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    @property
    def step_limits(self) -> tuple[float, float]:
        """As transformers has them, whatever `time_step_limit` says."""
        return self.time_step_min, math.inf

    @property
    def mamba_columns(self) -> int:
        return self.mamba_n_heads * self.mamba_d_head

    @property
    def kinds(self) -> list[str]:
        """What each layer is; without any word of it there are four of them, one of each kind."""
        types = self.layer_types or list(self.hybrid_override_pattern or "ME*-")
        return layer_kinds(types, len(types), _LAYERS)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, embedding = partial(ops.rms_norm, eps=config.rms_norm_eps), "backbone.embeddings"
    mixers: dict[str, Callable[[Value, str], Value]] = {
        "mamba": Mamba2(ops, config, output_bias=config.mamba_proj_bias),
        "attention": partial(Attention(ops, config, config.head_size**-0.5), rotation=None),
        "mlp": _mlp(config, ops, config.intermediate_size),
        "moe": partial(_experts, config, ops),
    }
    h = embed(ops, config, embedding)
    for layer, kind in enumerate(config.kinds):
        name = f"backbone.layers.{layer}"
        h = ops.add(h, mixers[kind](norm(h, f"{name}.norm"), f"{name}.mixer"))
    head(ops, config, norm(ops.select(h), "backbone.norm_f"), embedding)


def _mlp(config: Config, ops: Recorder, size: int) -> MLP:
    return MLP(ops, size, activation("mlp_hidden_act", config.mlp_hidden_act), bias=config.mlp_bias)


def _experts(config: Config, ops: Recorder, x: Value, module: str) -> Value:
    """A mixture of experts without gates, and one that all tokens go to."""
    router = Router(
        ops,
        config.n_routed_experts,
        config.num_experts_per_tok,
        correction="gate.e_score_correction_bias",
        scoring="sigmoid",
        normalize=config.norm_topk_prob,
        factor=config.routed_scaling_factor,
        groups=config.n_group,
        chosen_groups=config.topk_group,
        group_best=2,
    )
    size, choice = config.moe_latent_size or x.columns, router(x, module)
    y = x
    if config.moe_latent_size:
        y = ops.linear(x, f"{module}.fc1_latent_proj", size, bias=config.mlp_bias)
    names = [f"{module}.experts.{number}" for number in range(config.n_routed_experts)]
    y = ops.gather(y, choice)
    y = ops.expert_linear(y, choice, [f"{name}.up_proj" for name in names], config.moe_intermediate_size)
    y = ops.activate(y, activation("mlp_hidden_act", config.mlp_hidden_act))
    y = ops.combine(ops.expert_linear(y, choice, [f"{name}.down_proj" for name in names], size), choice)
    if config.moe_latent_size:
        y = ops.linear(y, f"{module}.fc2_latent_proj", x.columns, bias=config.mlp_bias)
    shared = _mlp(config, ops, config.moe_shared_expert_intermediate_size)
    return ops.add(y, shared(x, f"{module}.shared_experts"))
