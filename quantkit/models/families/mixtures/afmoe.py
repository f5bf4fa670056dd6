"""AFMoE (Trinity): mixtures of experts whose attention is gated, with norms before and after everything.

Three of four layers see a window and rotate their heads; the fourth sees all and rotates none. Heads are normalized.
The first layers have a plain MLP, the others experts that sigmoids and biases choose, and one for all tokens.

Arcee AI, "Arcee Trinity Large Technical Report", 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, every_nth_full, shown
from quantkit.models.decoder import Attention, Experts, GatedMLP, Router, WithShared, embed, head, rotation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `afmoe`."""

    hidden_act: str = "silu"
    head_dim: int | None = 128
    max_position_embeddings: int = 16_384
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    moe_intermediate_size: int = 1408
    num_dense_layers: int = bounded(1, minimum=0)
    num_experts: int = bounded(64, maximum=1024)
    num_experts_per_tok: int = 6
    num_shared_experts: int = 2
    route_scale: float = 1.0
    route_norm: bool = True
    score_func: str = "sigmoid"
    global_attn_every_n_layers: int = 4
    sliding_window: int | None = 1024
    layer_types: list[Any] | None = None
    mup_enabled: bool = False

    @property
    def windows(self) -> tuple[int, ...]:
        default = every_nth_full(self.global_attn_every_n_layers, self.num_hidden_layers)
        return attention_windows(self.layer_types, default, self.sliding_window)

    @property
    def rotated(self) -> tuple[bool, ...]:
        return tuple(window > 0 for window in self.windows)

    def check_routing(self) -> None:
        """Raise unless experts are chosen as in transformers."""
        for name, value in (("score_func", "sigmoid"), ("route_norm", True)):
            if getattr(self, name) != value:
                raise UnsupportedError(
                    f"config.json: {name} is {shown(getattr(self, name))}; supported is {shown(value)}"
                )


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    config.check_routing()
    norm, act = partial(ops.rms_norm, eps=config.rms_norm_eps), activation("hidden_act", config.hidden_act)
    bias, head_norm = config.attention_bias, partial(norm, size=config.head_size)
    attention = Attention(
        ops, config, config.head_size**-0.5, norm=head_norm, qkv_bias=bias, output_bias=bias, gate="gate_proj"
    )
    router = Router(
        ops,
        config.num_experts,
        config.num_experts_per_tok,
        name="router.gate",
        correction="expert_bias",
        scoring="sigmoid",
        factor=config.route_scale,
    )
    size = config.moe_intermediate_size
    experts = Experts(ops, router, size, partial(ops.gated, activation=act))
    sparse = WithShared(ops, experts, GatedMLP(ops, size * config.num_shared_experts, act))
    plain = GatedMLP(ops, config.intermediate_size, act)
    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    h = ops.scale(h, config.hidden_size**0.5) if config.mup_enabled else h
    for layer, (window, rotated) in enumerate(zip(config.windows, config.rotated, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = attention(x, f"{name}.self_attn", rotation=angles if rotated else None, window=window)
        h = ops.add(h, norm(x, f"{name}.post_attention_layernorm"))
        x = norm(h, f"{name}.pre_mlp_layernorm")
        x = plain(x, f"{name}.mlp") if layer < config.num_dense_layers else sparse(x, f"{name}.mlp")
        h = ops.add(h, norm(x, f"{name}.post_mlp_layernorm"))
    head(ops, config, norm(ops.select(h), "model.norm"))
