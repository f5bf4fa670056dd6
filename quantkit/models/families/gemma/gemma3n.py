"""Gemma 3n, text only: a layer predicts and corrects several streams at once, of which it reads one (AltUp).

Beside attention stands a residual connection of low rank (LAuReL). In the first layers the gate of the MLP keeps what
stands out, a few percent. The last layers share keys and values, and every layer reads its share of a second embedding
(`shared_keys.py`).

Baykal et al., "Alternating Updates for Efficient Transformers", 2023. Menghani et al., "LAuReL: Learned Augmented
Residual Layer", 2024. `modeling_gemma3n.py` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import bounded, shown
from quantkit.models.decoder import Norm, embed, head, shared_keys
from quantkit.models.decoder.shared_keys import Attention, LayerInputs
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import beside, parameters_by_type


@dataclass(frozen=True, kw_only=True)
class Config(shared_keys.Config):
    """`config.json` of model type `gemma3n_text`; `altup_coef_clip` counts in training alone."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"altup_coef_clip"})
    beyond_f16: ClassVar[bool] = True
    full_every: ClassVar[int] = 5
    default_rope_of: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"full_attention": {"rope_theta": 1_000_000.0}, "sliding_attention": {"rope_theta": 10_000.0}}
    )

    vocab_size: int = 262_400
    intermediate_size: Any = 16_384
    num_key_value_heads: int | None = 2
    max_position_embeddings: int = 32_768
    rope_local_base_freq: float | None = None
    final_logit_softcapping: float = 30.0
    num_kv_shared_layers: int = bounded(15, minimum=0)
    hidden_size_per_layer_input: int = 256
    altup_active_idx: int = bounded(0, minimum=0)
    altup_correct_scale: bool = True
    altup_num_inputs: int = bounded(4, maximum=64)
    laurel_rank: int = 64
    activation_sparsity_pattern: list[Any] | None = None

    @property
    def sizes(self) -> list[int]:
        """Columns of each layer's MLP."""
        sizes = self.intermediate_size
        sizes = sizes if isinstance(sizes, list) else [sizes] * self.num_hidden_layers
        if len(sizes) != self.num_hidden_layers or any(type(size) is not int or not 0 < size < 2**31 for size in sizes):
            raise CheckpointError(
                f"config.json: intermediate_size is {shown(self.intermediate_size)}, not a whole number from 1 to "
                f"{2**31 - 1}, or one for each of {self.num_hidden_layers} layers"
            )
        return sizes

    @property
    def sparsity(self) -> list[float]:
        """The share of each layer's gates that becomes zero."""
        layers, given = self.num_hidden_layers, self.activation_sparsity_pattern
        if given is None:
            sparse = 10 if layers > 10 else 0
            return [0.95] * sparse + [0.0] * (layers - sparse)
        if len(given) != layers or any(type(share) not in (int, float) or not 0 <= share < 1 for share in given):
            raise CheckpointError(
                f"config.json: activation_sparsity_pattern is {shown(given)}, not a share for each of {layers} layers"
            )
        return given

    def rope_of(self, layer_type: str) -> dict[str, Any]:
        """Rope parameters of one type of layer; what the old spellings say is for full attention alone."""
        others: dict[str, Any] = {"in rope_local_base_freq": {"rope_theta": self.rope_local_base_freq}}
        if layer_type == "full_attention":
            others = {"at the top level": beside(self), "in rope_scaling": self.rope_scaling}
        return {**self.default_rope_of[layer_type], **parameters_by_type(self, layer_type, others)}


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.altup_active_idx >= config.altup_num_inputs:
        raise CheckpointError(
            f"config.json: altup_active_idx is {config.altup_active_idx} of {config.altup_num_inputs} altup_num_inputs"
        )
    if config.altup_active_idx:
        raise UnsupportedError("config.json: altup_active_idx is not 0, the stream that the embedding begins")
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention, altup = Attention(ops, config), _AltUp(ops, config, norm)

    h = ops.scale(embed(ops, config), math.sqrt(config.hidden_size))
    inputs = LayerInputs(ops, config, norm, h)
    streams = altup.spread(h)
    for layer, (size, sparsity) in enumerate(zip(config.sizes, config.sparsity, strict=True)):
        name = f"model.layers.{layer}"
        streams = altup.predicted(streams, f"{name}.altup")
        x = norm(streams[0], f"{name}.input_layernorm")
        low = ops.linear(x, f"{name}.laurel.linear_left", config.laurel_rank)
        low = ops.linear(low, f"{name}.laurel.linear_right", config.hidden_size)
        low = ops.add(x, norm(low, f"{name}.laurel.post_laurel_norm"))
        x = norm(attention(x, f"{name}.self_attn", layer), f"{name}.post_attention_layernorm")
        h = ops.scale(ops.add(ops.add(streams[0], x), low), 2**-0.5)
        x = _mlp(config, ops, norm(h, f"{name}.pre_feedforward_layernorm"), f"{name}.mlp", size, sparsity)
        h = ops.add(h, norm(x, f"{name}.post_feedforward_layernorm"))
        first, *others = altup.corrected(streams, h, f"{name}.altup")
        x = ops.scale_by_weight(first, f"{name}.altup.correct_output_scale", config.hidden_size)
        x = inputs(x if config.altup_correct_scale else first, name, layer)
        streams = [first, *(ops.add(other, x) for other in others)]
    logits = head(ops, config, norm(ops.select(altup.gathered(streams)), "model.norm"))
    ops.softcap(logits, config.final_logit_softcapping)


def _mlp(config: Config, ops: Recorder, x: Value, module: str, size: int, sparsity: float) -> Value:
    """A gated MLP, most of whose gates become zero where there is a sparsity."""
    gate = ops.linear(x, f"{module}.gate_proj", size)
    if sparsity:
        gate = ops.sparsify(gate, NormalDist().inv_cdf(sparsity))
    gated = ops.gated(gate, ops.linear(x, f"{module}.up_proj", size), config.activation)
    return ops.linear(gated, f"{module}.down_proj", x.columns)


class _AltUp:
    """The streams beside the residual one: how they are predicted before a layer, and corrected after it."""

    def __init__(self, ops: Recorder, config: Config, norm: Norm) -> None:
        self.ops, self.config, self.norm = ops, config, norm

    def spread(self, h: Value) -> list[Value]:
        """Record the streams at the beginning: the embedding, and projections of the same size."""
        return [h, *(self._projected(h, h, f"model.altup_projections.{number}") for number in self._others())]

    def gathered(self, streams: Sequence[Value]) -> Value:
        """Record the mean of the streams, of the size of the first one -> `[T, hidden_size]`."""
        first, *others = streams
        unembed = "model.altup_unembed_projections"
        numbered = zip(self._others(), others, strict=True)
        projected = (self._projected(other, first, f"{unembed}.{number}") for number, other in numbered)
        return self.ops.scale(reduce(self.ops.add, projected, first), 1 / len(streams))

    def predicted(self, streams: Sequence[Value], module: str) -> list[Value]:
        """Record each stream with what all of them, weighed, add to it."""
        ops, count = self.ops, len(streams)
        weights = self._weights(streams[0], f"{module}.prediction_coefs", count**2)
        predicted = []
        for row, stream in enumerate(streams):
            shares = (
                ops.scale_rows(other, ops.slice(weights, place, place + 1))
                for place, other in enumerate(streams, start=row * count)
            )
            predicted.append(ops.add(reduce(ops.add, shares), stream))
        return predicted

    def corrected(self, predicted: Sequence[Value], h: Value, module: str) -> list[Value]:
        """Record each stream with its share of what the layer's output has beyond its prediction."""
        ops = self.ops
        news = ops.add(h, ops.scale(predicted[0], -1.0))
        weights = self._weights(h, f"{module}.correction_coefs", len(predicted))
        shares = (ops.scale_rows(news, ops.slice(weights, place, place + 1)) for place in range(len(predicted)))
        return [ops.add(ops.add(share, news), old) for share, old in zip(shares, predicted, strict=True)]

    def _weights(self, x: Value, module: str, count: int) -> Value:
        """Weights of the streams by what one of them holds; the coefficients keep all their bits, as routers do."""
        ops, altup = self.ops, module.rpartition(".")[0]
        x = ops.scale(self.norm(x, f"{altup}.router_norm"), 1 / x.columns)
        x = ops.linear(x, f"{altup}.modality_router", self.config.altup_num_inputs, role="router")
        return ops.linear(ops.softcap(x, 1.0), module, count, role="router")

    def _projected(self, x: Value, size: Value, module: str) -> Value:
        return self.ops.match_rms(self.ops.linear(x, module, x.columns), size)

    def _others(self) -> range:
        return range(self.config.altup_num_inputs - 1)
