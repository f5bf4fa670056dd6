"""gpt-oss: mixtures of experts whose gates are clamped, and heads that may look at nothing: a learned sink.

Every other layer sees a window. All projections, the router's and the experts' too, have biases. The experts are stored
as stacks, transposed, with the columns of gate and up in turn; as published, in four bits (MXFP4).

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.models.config import DecoderConfig, attention_windows, bounded, every_nth_full
from quantkit.models.decoder import Attention, Experts, Router, pre_norm_decoder
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `gpt_oss`; its experts' activation is fixed, whatever `hidden_act` says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"hidden_act", "experts_per_token", "initial_context_length"})
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"num_experts": "num_local_experts"})
    default_theta: ClassVar[float] = 150_000.0
    default_rope: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        }
    )

    num_key_value_heads: int | None = 8
    head_dim: int | None = 64
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    sliding_window: int | None = 128
    layer_types: list[Any] | None = None
    num_local_experts: int = bounded(128, maximum=1024)
    num_experts_per_tok: int = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    @property
    def windows(self) -> tuple[int, ...]:
        return attention_windows(self.layer_types, every_nth_full(2, self.num_hidden_layers), self.sliding_window)


STORED = (
    Fused(
        "mlp.experts.gate_up_proj",
        ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
        groups="intermediate_size",
        transposed=True,
        weight="",
        bias="_bias",
    ),
    Fused("mlp.experts.down_proj", ("mlp.experts.*.down_proj",), transposed=True, weight="", bias="_bias"),
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    bias = config.attention_bias
    attention = Attention(ops, config, config.head_size**-0.5, qkv_bias=bias, output_bias=bias, sinks=True)
    router = Router(
        ops,
        config.num_local_experts,
        config.num_experts_per_tok,
        name="router",
        bias=True,
        scoring="softmax_of_chosen",
        normalize=False,
    )
    gated = partial(ops.gated_clamped, alpha=config.swiglu_alpha, limit=config.swiglu_limit, offset=1.0)
    experts = Experts(ops, router, config.intermediate_size, gated, bias=True)
    pre_norm_decoder(ops, config, attention, [experts] * config.num_hidden_layers)
