"""Granite 4: Granite's four factors, layers of Mamba-2 or of attention, and in each an MLP that all tokens go to.

Models with experts add a mixture to it. Small models may have neither experts nor Mamba-2 layers.

IBM Research, "Granite 4.0 Language Models", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.models.config import activation, bounded
from quantkit.models.decoder import Attention, Experts, GatedMLP, Router, embed, head, rotation, state_space
from quantkit.models.decoder.state_space import Mamba2, Mamba2Config, layer_kinds
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(Mamba2Config):
    """`config.json` of model type `granitemoehybrid`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"layers_block_type": "layer_types"})

    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    num_local_experts: int = bounded(8, minimum=0, maximum=1024)
    num_experts_per_tok: int = bounded(2, minimum=0)
    shared_intermediate_size: int = 1024
    position_embedding_type: str | None = None
    layer_types: list[Any] | None = None

    @property
    def attends(self) -> list[bool]:
        """Whether each layer has attention."""
        types = self.layer_types or ["mamba"] * self.num_hidden_layers
        return [kind == "attention" for kind in layer_kinds(types, self.num_hidden_layers, _LAYERS)]


_LAYERS = {
    **{"mamba": "mamba", "linear_attention": "mamba"},
    **{"attention": "attention", "full_attention": "attention"},
}
STORED = (
    *state_space.STORED,
    Fused(
        "block_sparse_moe.input_linear", ("block_sparse_moe.experts.*.gate_proj", "block_sparse_moe.experts.*.up_proj")
    ),
    Fused("block_sparse_moe.output_linear", ("block_sparse_moe.experts.*.down_proj",)),
    Fused("shared_mlp.input_linear", ("shared_mlp.gate_proj", "shared_mlp.up_proj")),
    Fused("shared_mlp.output_linear", ("shared_mlp.down_proj",)),
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    bias, mamba = config.attention_bias, Mamba2(ops, config, output_bias=config.mamba_proj_bias)
    attention = Attention(ops, config, config.attention_multiplier, qkv_bias=bias, output_bias=bias)
    angles = rotation(ops, config, parameters_of(config)) if config.position_embedding_type == "rope" else None
    feed_forward = _feed_forward(config, ops)
    h = ops.scale(embed(ops, config), config.embedding_multiplier)
    for layer, attends in enumerate(config.attends):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = attention(x, f"{name}.self_attn", rotation=angles) if attends else mamba(x, f"{name}.mamba")
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
        x = feed_forward(norm(h, f"{name}.post_attention_layernorm"), name)
        h = ops.add(h, ops.scale(x, config.residual_multiplier))
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    ops.scale(logits, 1 / config.logits_scaling)


def _feed_forward(config: Config, ops: Recorder) -> Callable[[Value, str], Value]:
    """What all layers do behind their mixers."""
    act = activation("hidden_act", config.hidden_act)
    shared = GatedMLP(ops, config.shared_intermediate_size, act)
    if not config.num_local_experts:
        return lambda x, name: shared(x, f"{name}.shared_mlp")
    router = Router(
        ops,
        config.num_local_experts,
        config.num_experts_per_tok,
        name="router.layer",
        scoring="softmax_of_chosen",
        normalize=False,
    )
    experts = Experts(ops, router, config.intermediate_size, partial(ops.gated, activation=act))
    return lambda x, name: ops.add(experts(x, f"{name}.block_sparse_moe"), shared(x, f"{name}.shared_mlp"))
