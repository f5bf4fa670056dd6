"""Gemma 4, text only: layers of two kinds that differ in the size of their heads, and share keys and values.

Most layers see a window, some see all tokens; the latter have larger heads, of which a part is rotated, and whose keys
and values may be one. In the small models every layer reads its share of a second embedding (`shared_keys.py`). In
others a mixture of experts stands beside the MLP.

Google, "Gemma 4", 2026; `modeling_gemma4.py` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import attention_windows, bounded, every_nth_full, shown
from quantkit.models.decoder import Experts, GatedMLP, Norm, Router, embed, head, shared_keys
from quantkit.models.decoder.shared_keys import Attention, Heads, LayerInputs
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused

STORED = (
    Fused("experts.gate_up_proj", ("experts.*.gate_proj", "experts.*.up_proj"), weight=""),
    Fused("experts.down_proj", ("experts.*.down_proj",), weight=""),
)


@dataclass(frozen=True, kw_only=True)
class Config(shared_keys.Config):
    """`config.json` of model type `gemma4_text`."""

    beyond_f16: ClassVar[bool] = True
    full_every: ClassVar[int] = 6
    default_rope_of: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }
    )

    vocab_size: int = 262_144
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 131_072
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: str | None = None
    attention_k_eq_v: bool = False
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    global_head_dim: int = 512
    num_global_key_value_heads: int | None = None
    per_layer_config: Mapping[str, Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        default = every_nth_full(self.full_every, self.num_hidden_layers)
        kinds = default if self.layer_types is None else self.layer_types
        return attention_windows([*kinds[:-1], "full_attention"], default, self.sliding_window)

    def values_are_keys(self, layer: int) -> bool:
        return self.attention_k_eq_v and not self.windows[layer]

    def heads(self, layer: int) -> Heads:
        """Heads of a layer's keys and values: those of layers that see all tokens are others."""
        changed: Any = {}
        if self.per_layer_config is not None:  # transformers fills its keys up with zeros
            changed = {key.lstrip("0") or "0": value for key, value in self.per_layer_config.items()}
            changed = changed.get(str(layer), {})
        elif not self.windows[layer]:
            changed = {"head_dim": self.global_head_dim}
            if self.attention_k_eq_v and self.num_global_key_value_heads is not None:
                changed["num_key_value_heads"] = self.num_global_key_value_heads
        found = {"head_dim": self.head_size, "num_key_value_heads": self.kv_heads}
        if not isinstance(changed, Mapping) or changed.keys() - found.keys():
            raise UnsupportedError(f"config.json: per_layer_config has {shown(changed)} for layer {layer}")
        size, number = (found | dict(changed)).values()
        whole = all(type(value) is int and 0 < value <= 65_536 for value in (size, number))
        if not whole or size % 2 or self.num_attention_heads % number:
            raise CheckpointError(
                f"config.json: layer {layer} has {shown(number)} KV heads of {shown(size)} channels for "
                f"{self.num_attention_heads} query heads"
            )
        return Heads(size, number)


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig(Config):
    """`config.json` of model type `gemma4_unified_text`, which has neither experts nor a second embedding."""

    max_position_embeddings: int = 262_144
    sliding_window: int | None = 1024
    use_bidirectional_attention: str | None = "vision"
    hidden_size_per_layer_input: int = bounded(0, minimum=0)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.use_bidirectional_attention not in (None, "vision"):
        value = shown(config.use_bidirectional_attention)
        raise UnsupportedError(f"config.json: use_bidirectional_attention is {value}; quantkit's attention is causal")
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention, experts = Attention(ops, config), _Experts(ops, config, norm) if config.enable_moe_block else None

    h = ops.scale(embed(ops, config), math.sqrt(config.hidden_size))
    inputs = LayerInputs(ops, config, norm, h) if config.hidden_size_per_layer_input else None
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", layer)
        h = ops.add(h, norm(x, f"{name}.post_attention_layernorm"))
        wide = 2 if config.use_double_wide_mlp and layer >= config.first_shared else 1
        mlp = GatedMLP(ops, wide * config.intermediate_size, config.activation)
        x = mlp(norm(h, f"{name}.pre_feedforward_layernorm"), f"{name}.mlp")
        if experts is not None:
            x = ops.add(norm(x, f"{name}.post_feedforward_layernorm_1"), experts(h, name))
        h = ops.add(h, norm(x, f"{name}.post_feedforward_layernorm"))
        if inputs is not None:
            h = ops.add(h, inputs(h, name, layer))
        h = ops.scale_by_weight(h, f"{name}.layer_scalar", 1)
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    if config.final_logit_softcapping is not None:
        ops.softcap(logits, config.final_logit_softcapping)


class _Experts:
    """The mixture of experts beside an MLP, whose router reads another norm than they do."""

    def __init__(self, ops: Recorder, config: Config, norm: Norm) -> None:
        self.ops, self.config, self.norm = ops, config, norm
        sizes = (config.num_experts, config.top_k_experts, config.moe_intermediate_size)
        if None in sizes:
            raise CheckpointError(
                "config.json: enable_moe_block is true, but num_experts, top_k_experts and moe_intermediate_size are "
                f"{shown(sizes)}"
            )
        router = Router(ops, config.num_experts or 0, config.top_k_experts or 0, name="router.proj")
        gated = partial(ops.gated, activation=config.activation)
        self.experts = Experts(ops, router, config.moe_intermediate_size or 0, gated)

    def __call__(self, h: Value, module: str) -> Value:
        """Record one layer's experts and the norm after them -> `[T, hidden_size]`."""
        ops, config = self.ops, self.config
        x = ops.rms_norm(h, None, config.rms_norm_eps)
        x = ops.scale(ops.scale_by_weight(x, f"{module}.router.scale", h.columns), config.hidden_size**-0.5)
        choice = ops.scale_choice(self.experts.router(x, module), f"{module}.router.per_expert_scale")
        x = self.experts.chosen(self.norm(h, f"{module}.pre_feedforward_layernorm_2"), choice, module)
        return self.norm(x, f"{module}.post_feedforward_layernorm_2")
