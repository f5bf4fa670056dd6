"""The experts of Qwen2 and all later Qwens, which attend in different ways. Some of their layers may have a plain MLP.

An expert that all tokens go to has a gate of its own, one number for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import Experts, FeedForward, GatedMLP, Router, WithShared
from quantkit.models.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class QwenExpertsConfig(DecoderConfig):
    """The fields that all of them have."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"num_local_experts": "num_experts"})

    hidden_act: str = "silu"
    max_position_embeddings: int = 32_768
    num_experts: int = bounded(60, minimum=0, maximum=1024)
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 1408
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[Any] | None = None

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts, not a plain MLP."""
        plain = self.mlp_only_layers or []
        if not all(type(layer) is int for layer in plain):
            raise CheckpointError(f"config.json: mlp_only_layers is {shown(plain)}, not a list of layers")
        return tuple(
            layer not in plain and self.num_experts > 0 and (layer + 1) % self.decoder_sparse_step == 0
            for layer in range(self.num_hidden_layers)
        )


def feed_forwards(ops: Recorder, config: QwenExpertsConfig, shared_size: int = 0) -> list[FeedForward]:
    """What each layer has behind attention; `shared_size`: columns of the expert that all tokens go to, 0 for none."""
    act = activation("hidden_act", config.hidden_act)
    router = Router(ops, config.num_experts, config.num_experts_per_tok, normalize=config.norm_topk_prob)
    sparse: FeedForward = Experts(ops, router, config.moe_intermediate_size, partial(ops.gated, activation=act))
    if shared_size:
        shared = GatedMLP(ops, shared_size, act)
        sparse = WithShared(ops, sparse, shared, "shared_expert", gate="shared_expert_gate")
    plain = GatedMLP(ops, config.intermediate_size, act)
    return [sparse if is_sparse else plain for is_sparse in config.sparse]
