"""What Gemma 3n and Gemma 4 have in common: layers that share keys and values, and a second embedding for each layer.

The last layers have no keys and values of their own. They attend to those of the last layer before of their kind: most
layers see a window, some see all tokens. Every layer may read its share of a second embedding, which is a table of many
columns; a token reads one row of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, every_nth_full
from quantkit.models.decoder import Norm, rotation
from quantkit.models.program import Cache, Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import beside, parameters_by_type


class Heads(NamedTuple):
    """Heads of one layer's keys and values."""

    size: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that both have.

    Attributes
    ----------
    full_every : int
        Where the config does not say which layers see all tokens, every so many-th does.
    default_rope_of : Mapping
        Rope parameters of each type of layer, where the config has none.
    """

    full_every: ClassVar[int]
    default_rope_of: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    num_attention_heads: int = 8
    head_dim: int | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 512
    layer_types: list[Any] | None = None
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = bounded(256, minimum=0)
    num_kv_shared_layers: int = bounded(0, minimum=0)

    @property
    def activation(self) -> str:
        """The recorder's name."""
        return activation("hidden_activation", self.hidden_activation)

    @property
    def windows(self) -> tuple[int, ...]:
        default = every_nth_full(self.full_every, self.num_hidden_layers)
        return attention_windows(self.layer_types, default, self.sliding_window)

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
        """Heads of a layer's keys and values."""
        return Heads(self.head_size, self.kv_heads)

    def values_are_keys(self, layer: int) -> bool:
        """Whether a layer's values are its keys, before these are normalized."""
        return False

    def rope_of(self, layer_type: str) -> dict[str, Any]:
        """Rope parameters of one type of layer."""
        others: dict[str, Any] = {"at the top level": beside(self), "in rope_scaling": self.rope_scaling}
        if self.rope_parameters is None:
            others["by default"] = self.default_rope_of[layer_type]
        return parameters_by_type(self, layer_type, others)


class Attention:
    """Attention of all layers: heads are normalized, values too, and scores are not scaled."""

    def __init__(self, ops: Recorder, config: Config) -> None:
        self.ops, self.config = ops, config
        self.caches: dict[bool, tuple[Cache, Heads]] = {}
        """Of the last layer with a window, and of the last without."""
        self.rotations: dict[tuple[bool, int], Value] = {}

    def __call__(self, x: Value, module: str, layer: int) -> Value:
        """Record one layer's attention -> `[T, hidden_size]`."""
        ops, config = self.ops, self.config
        heads, window, bias = config.heads(layer), config.windows[layer], config.attention_bias
        q = ops.linear(x, f"{module}.q_proj", config.num_attention_heads * heads.size, bias=bias)
        q = self._turned(q, f"{module}.q_norm", heads, window)
        if layer < config.first_shared:
            self.caches[window > 0] = self._store(x, module, layer), heads
        else:
            ops.spare(*(f"{module}.{name}" for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight")))
        cache, shared = self.caches.get(window > 0, (None, heads))
        if cache is None or shared != heads:
            raise CheckpointError(f"config.json: layer {layer} has no earlier layer of its kind to share keys with")
        x = ops.attention(q, cache, scale=1.0, window=window)
        return ops.linear(x, f"{module}.o_proj", config.hidden_size, bias=bias)

    def _store(self, x: Value, module: str, layer: int) -> Cache:
        ops, config, heads = self.ops, self.config, self.config.heads(layer)
        columns, bias = heads.size * heads.number, config.attention_bias
        k = ops.linear(x, f"{module}.k_proj", columns, bias=bias)
        v = k if config.values_are_keys(layer) else ops.linear(x, f"{module}.v_proj", columns, bias=bias)
        v = ops.rms_norm(v, None, config.rms_norm_eps, size=heads.size)
        k = self._turned(k, f"{module}.k_norm", heads, config.windows[layer])
        return ops.store_kv(k, v, head_dim=heads.size)

    def _turned(self, x: Value, norm: str, heads: Heads, window: int) -> Value:
        """Heads that are normalized and rotated; the angles are recorded where they are first needed."""
        key = window > 0, heads.size
        if key not in self.rotations:
            parameters = self.config.rope_of("sliding_attention" if window else "full_attention")
            self.rotations[key] = rotation(self.ops, self.config, parameters, heads.size)
        x = self.ops.rms_norm(x, norm, self.config.rms_norm_eps, size=heads.size)
        return self.ops.rope(x, self.rotations[key], head_dim=heads.size)


class LayerInputs:
    """What layers read besides the one before: a second embedding, and a projection of the first one, `h`."""

    def __init__(self, ops: Recorder, config: Config, norm: Norm, h: Value) -> None:
        self.ops, self.config, self.norm = ops, config, norm
        size = config.hidden_size_per_layer_input
        columns = config.num_hidden_layers * size
        table = ops.embed("model.embed_tokens_per_layer", config.vocab_size_per_layer_input, columns)
        projected = ops.linear(h, "model.per_layer_model_projection", columns)
        projected = ops.scale(projected, config.hidden_size**-0.5)
        projected = ops.rms_norm(projected, "model.per_layer_projection_norm", config.rms_norm_eps, size=size)
        self.all = ops.scale(ops.add(projected, ops.scale(table, math.sqrt(size))), 2**-0.5)

    def __call__(self, x: Value, module: str, layer: int) -> Value:
        """Record what a layer makes of its own input, gated by `x` -> `[T, hidden_size]`."""
        ops, size = self.ops, self.config.hidden_size_per_layer_input
        own = ops.slice(self.all, layer * size, (layer + 1) * size)
        gate = ops.linear(x, f"{module}.per_layer_input_gate", size)
        x = ops.linear(ops.gated(gate, own, self.config.activation), f"{module}.per_layer_projection", x.columns)
        return self.norm(x, f"{module}.post_per_layer_input_norm")
