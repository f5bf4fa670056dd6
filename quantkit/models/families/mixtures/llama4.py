"""Llama 4, text: one expert for each token, beside one for all; most layers attend within chunks of the text.

Layers without rotary embedding see the whole text, and their queries are scaled up far into it. In the others, heads
are rotated, then perhaps normalized, without weights. A router's logistic function scales what an expert reads, not
what it makes. Some layers may have a plain MLP. The experts are stored as stacks, transposed.

Meta, "The Llama 4 herd", 2025. Nakanishi, "Scalable-Softmax Is Superior for Attention", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import Attention, Experts, GatedMLP, Router, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused

CHUNKED, FULL = "chunked_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `llama4_text`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"for_llm_compressor"})
    default_theta: ClassVar[float] = 500_000.0

    hidden_act: str = "silu"
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    attention_chunk_size: int | None = 8192
    attn_temperature_tuning: Any = True
    attn_scale: float = 0.1
    floor_scale: int = 8192
    use_qk_norm: bool = True
    no_rope_layers: list[Any] | None = None
    no_rope_layer_interval: int = 4
    layer_types: list[Any] | None = None
    intermediate_size_mlp: int = 16_384
    num_local_experts: int = bounded(16, maximum=1024)
    num_experts_per_tok: int = 1
    moe_layers: list[Any] | None = None
    interleave_moe_layer_step: int = 1

    @property
    def rotated(self) -> tuple[bool, ...]:
        flags, layers = self.no_rope_layers, self.num_hidden_layers
        if not flags:
            return tuple(layer % self.no_rope_layer_interval != 0 for layer in range(1, layers + 1))
        if len(flags) < layers or any(flag not in (0, 1) for flag in flags):
            raise CheckpointError(
                f"config.json: no_rope_layers is {shown(flags)}, not 0 or 1 for each of {layers} layers"
            )
        return tuple(map(bool, flags[:layers]))

    @property
    def windows(self) -> tuple[int, ...]:
        kinds, size = self.layer_types, self.attention_chunk_size or 0
        if kinds is None:
            return tuple(size if rotated else 0 for rotated in self.rotated)
        if len(kinds) != self.num_hidden_layers or any(kind not in (CHUNKED, FULL) for kind in kinds):
            raise UnsupportedError(
                f"config.json: layer_types is {shown(kinds)}, not {CHUNKED} or {FULL} for each of "
                f"{self.num_hidden_layers} layers"
            )
        return tuple(size if kind == CHUNKED else 0 for kind in kinds)

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts, not a plain MLP."""
        step, layers = self.interleave_moe_layer_step, range(self.num_hidden_layers)
        return tuple(
            (layer + 1) % step == 0 if self.moe_layers is None else layer in self.moe_layers for layer in layers
        )


STORED = (
    Fused(
        "feed_forward.experts.gate_up_proj",
        ("feed_forward.experts.*.gate_proj", "feed_forward.experts.*.up_proj"),
        transposed=True,
        weight="",
    ),
    Fused("feed_forward.experts.down_proj", ("feed_forward.experts.*.down_proj",), transposed=True, weight=""),
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.num_experts_per_tok != 1:
        raise UnsupportedError(f"config.json: num_experts_per_tok is {config.num_experts_per_tok}; supported is 1")
    norm, act = partial(ops.rms_norm, eps=config.rms_norm_eps), activation("hidden_act", config.hidden_act)
    attention = {rotated: _attention(config, ops, rotated) for rotated in (False, True)}
    # The softmax of one is 1: the expert's output is taken as it is.
    router = Router(ops, config.num_local_experts, 1, name="router", scoring="softmax_of_chosen")
    experts = Experts(ops, router, config.intermediate_size, partial(ops.gated, activation=act))
    shared = GatedMLP(ops, config.intermediate_size, act)
    plain = GatedMLP(ops, config.intermediate_size_mlp, act)

    def sparse(x: Value, module: str) -> Value:
        choice = router(x, module)
        scaled = ops.scale_rows(x, ops.slice(ops.route(choice.logits, 1, scoring="sigmoid").routing, 1, 2))
        return ops.add(shared(x, f"{module}.shared_expert"), experts.chosen(scaled, choice, module))

    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    layers = zip(config.sparse, config.windows, config.rotated, strict=True)
    for layer, (is_sparse, window, rotated) in enumerate(layers):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = attention[rotated](x, f"{name}.self_attn", rotation=angles if rotated else None, window=window)
        h = ops.add(h, x)
        x = norm(h, f"{name}.post_attention_layernorm")
        h = ops.add(h, (sparse if is_sparse else plain)(x, f"{name}.feed_forward"))
    head(ops, config, norm(ops.select(h), "model.norm"))


def _attention(config: Config, ops: Recorder, rotated: bool) -> Attention:
    """The attention of layers whose heads are rotated, or of the others."""

    def normalized(heads: Value, module: str) -> Value:
        return ops.rms_norm(heads, None, config.rms_norm_eps, size=config.head_size)

    scaled = partial(ops.scale_by_position, beta=config.attn_scale, period=config.floor_scale, offset=1)
    bias = config.attention_bias
    return Attention(
        ops,
        config,
        config.head_size**-0.5,
        norm=normalized if rotated and config.use_qk_norm else None,
        norm_last=True,
        interleaved=True,
        qkv_bias=bias,
        output_bias=bias,
        chunked=True,
        queries=scaled if config.attn_temperature_tuning and not rotated else None,
    )
