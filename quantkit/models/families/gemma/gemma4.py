"""Gemma 4, text only: layers of two kinds that differ in the size of their heads, and share keys and values.

Most layers see a window, some see all tokens; the latter have larger heads, of which a part is rotated. Keys and values
are normalized, and may be one. The last layers have none of their own: they attend to those of the last layer before of
their kind. In the small models every layer reads its share of a second embedding, which is a table of many columns of
which one row a token is read. In others a mixture of experts stands beside the MLP.

Google, "Gemma 4", 2026; `modeling_gemma4.py` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, every_nth_full, shown
from quantkit.models.decoder import Experts, GatedMLP, Norm, Router, embed, head, rotation
from quantkit.models.program import Cache, Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import beside, parameters_by_type
from quantkit.models.stored import Fused

_ROPE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
)
"""Rope parameters where the config has none."""

STORED = (
    Fused("experts.gate_up_proj", ("experts.*.gate_proj", "experts.*.up_proj"), weight=""),
    Fused("experts.down_proj", ("experts.*.down_proj",), weight=""),
)


class Heads(NamedTuple):
    """Heads of one layer's keys and values."""

    size: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `gemma4_text`."""

    vocab_size: int = 262_144
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 512
    layer_types: list[Any] | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: str | None = None
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = bounded(256, minimum=0)
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int = bounded(0, minimum=0)
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
        default = every_nth_full(6, self.num_hidden_layers)
        kinds = default if self.layer_types is None else self.layer_types
        return attention_windows([*kinds[:-1], "full_attention"], default, self.sliding_window)

    @property
    def first_shared(self) -> int:
        """The first of the layers that have no keys and values of their own."""
        first = self.num_hidden_layers - self.num_kv_shared_layers
        if first < 1:
            raise UnsupportedError(
                f"config.json: num_kv_shared_layers is {self.num_kv_shared_layers} of {self.num_hidden_layers} layers: "
                "the model reads the keys and values of another one"
            )
        return first

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

    def rope_of(self, layer_type: str) -> dict[str, Any]:
        """Rope parameters of one type of layer."""
        others: dict[str, Any] = {"at the top level": beside(self), "in rope_scaling": self.rope_scaling}
        if self.rope_parameters is None:
            others["by default"] = _ROPE[layer_type]
        return parameters_by_type(self, layer_type, others)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.use_bidirectional_attention not in (None, "vision"):
        value = shown(config.use_bidirectional_attention)
        raise UnsupportedError(f"config.json: use_bidirectional_attention is {value}; quantkit's attention is causal")
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention, act = _Attention(ops, config), activation("hidden_activation", config.hidden_activation)
    experts = _Experts(ops, config, norm, act) if config.enable_moe_block else None

    h = ops.scale(embed(ops, config), math.sqrt(config.hidden_size))
    inputs = _per_layer_inputs(config, ops, h) if config.hidden_size_per_layer_input else None
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", layer)
        h = ops.add(h, norm(x, f"{name}.post_attention_layernorm"))
        wide = 2 if config.use_double_wide_mlp and layer >= config.first_shared else 1
        mlp = GatedMLP(ops, wide * config.intermediate_size, act)
        x = mlp(norm(h, f"{name}.pre_feedforward_layernorm"), f"{name}.mlp")
        if experts is not None:
            x = ops.add(norm(x, f"{name}.post_feedforward_layernorm_1"), experts(h, name))
        h = ops.add(h, norm(x, f"{name}.post_feedforward_layernorm"))
        if inputs is not None:
            size = config.hidden_size_per_layer_input
            own = ops.slice(inputs, layer * size, (layer + 1) * size)
            x = ops.gated(ops.linear(h, f"{name}.per_layer_input_gate", size), own, act)
            x = ops.linear(x, f"{name}.per_layer_projection", config.hidden_size)
            h = ops.add(h, norm(x, f"{name}.post_per_layer_input_norm"))
        h = ops.scale_by_weight(h, f"{name}.layer_scalar", 1)
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    if config.final_logit_softcapping is not None:
        ops.softcap(logits, config.final_logit_softcapping)


def _per_layer_inputs(config: Config, ops: Recorder, h: Value) -> Value:
    """What all layers read besides the layer before: a second embedding, and a projection of the first one."""
    size = config.hidden_size_per_layer_input
    columns = config.num_hidden_layers * size
    table = ops.embed("model.embed_tokens_per_layer", config.vocab_size_per_layer_input, columns)
    projected = ops.linear(h, "model.per_layer_model_projection", columns)
    projected = ops.scale(projected, config.hidden_size**-0.5)
    projected = ops.rms_norm(projected, "model.per_layer_projection_norm", config.rms_norm_eps, size=size)
    return ops.scale(ops.add(projected, ops.scale(table, math.sqrt(size))), 2**-0.5)


class _Attention:
    """Attention of all layers, with the caches that later ones share, one of each type."""

    def __init__(self, ops: Recorder, config: Config) -> None:
        self.ops, self.config = ops, config
        self.caches: dict[bool, tuple[Cache, Heads]] = {}
        self.rotations: dict[tuple[bool, int], Value] = {}

    def __call__(self, x: Value, module: str, layer: int) -> Value:
        """Record one layer's attention -> `[T, hidden_size]`."""
        ops, config = self.ops, self.config
        heads, window, bias = config.heads(layer), config.windows[layer], config.attention_bias
        q = ops.linear(x, f"{module}.q_proj", config.num_attention_heads * heads.size, bias=bias)
        q = self._turned(q, f"{module}.q_norm", heads, window)
        if layer < config.first_shared:
            self.caches[window > 0] = self._store(x, module, heads, window), heads
        else:
            ops.spare(*(f"{module}.{name}" for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight")))
        cache, shared = self.caches.get(window > 0, (None, heads))
        if cache is None or shared != heads:
            raise CheckpointError(f"config.json: layer {layer} has no earlier layer of its kind to share keys with")
        x = ops.attention(q, cache, scale=1.0, window=window)
        return ops.linear(x, f"{module}.o_proj", config.hidden_size, bias=bias)

    def _store(self, x: Value, module: str, heads: Heads, window: int) -> Cache:
        ops, config, columns = self.ops, self.config, heads.size * heads.number
        k = ops.linear(x, f"{module}.k_proj", columns, bias=config.attention_bias)
        v = k
        if window or not config.attention_k_eq_v:
            v = ops.linear(x, f"{module}.v_proj", columns, bias=config.attention_bias)
        v = ops.rms_norm(v, None, config.rms_norm_eps, size=heads.size)
        return ops.store_kv(self._turned(k, f"{module}.k_norm", heads, window), v, head_dim=heads.size)

    def _turned(self, x: Value, norm: str, heads: Heads, window: int) -> Value:
        """Heads that are normalized and rotated; the angles are recorded where they are first needed."""
        key = window > 0, heads.size
        if key not in self.rotations:
            parameters = self.config.rope_of("sliding_attention" if window else "full_attention")
            self.rotations[key] = rotation(self.ops, self.config, parameters, heads.size)
        x = self.ops.rms_norm(x, norm, self.config.rms_norm_eps, size=heads.size)
        return self.ops.rope(x, self.rotations[key], head_dim=heads.size)


class _Experts:
    """The mixture of experts beside an MLP, whose router reads another norm than they do."""

    def __init__(self, ops: Recorder, config: Config, norm: Norm, act: str) -> None:
        self.ops, self.config, self.norm = ops, config, norm
        sizes = (config.num_experts, config.top_k_experts, config.moe_intermediate_size)
        if None in sizes:
            raise CheckpointError(
                "config.json: enable_moe_block is true, but num_experts, top_k_experts and moe_intermediate_size are "
                f"{shown(sizes)}"
            )
        router = Router(ops, config.num_experts or 0, config.top_k_experts or 0, name="router.proj")
        self.experts = Experts(ops, router, config.moe_intermediate_size or 0, partial(ops.gated, activation=act))

    def __call__(self, h: Value, module: str) -> Value:
        """Record one layer's experts and the norm after them -> `[T, hidden_size]`."""
        ops, config = self.ops, self.config
        x = ops.rms_norm(h, None, config.rms_norm_eps)
        x = ops.scale(ops.scale_by_weight(x, f"{module}.router.scale", h.columns), config.hidden_size**-0.5)
        choice = ops.scale_choice(self.experts.router(x, module), f"{module}.router.per_expert_scale")
        x = self.experts.chosen(self.norm(h, f"{module}.pre_feedforward_layernorm_2"), choice, module)
        return self.norm(x, f"{module}.post_feedforward_layernorm_2")
