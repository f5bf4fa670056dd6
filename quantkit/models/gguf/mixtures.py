"""GGUF's names and keys of mixtures of experts, which it stores in stacks; `dense.py` has what others have as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.dense import ATTENTION, BESIDE_BLOCKS, GRANITE, HEAD_NORMS, NORMS_BEFORE
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.stored import Fused

_ATTENTION: Names = BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE


def _experts(module: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Names:
    parts = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    return {name: f"{module}.experts.*.{part}" for name, part in parts.items()}


_USED = {"num_experts_per_tok": Key("expert_used_count", int, ...)}
_COUNTS = {"num_experts": Key("expert_count", int, ...), **_USED}
_LOCAL_COUNTS = {"num_local_experts": Key("expert_count", int, ...), **_USED}
_SIZE = {"moe_intermediate_size": Key("expert_feed_forward_length", int, ...)}
_SHARED: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_ROUTER: Names = {"ffn_gate_inp": "mlp.gate"}
_SINKS = (Fused("attn_sinks", ("self_attn",), bias=".weight"),)
"""The program's tensor is `self_attn.sinks`, the file's `attn_sinks.weight`."""


def _gpt_oss(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Its yarn blends between bounds that are not rounded, which no key says."""
    scaling = config["rope_scaling"]
    return {"rope_scaling": scaling and {**scaling, "truncate": False}}


MIXTURES: Mapping[str, Mapping[str, Dialect]] = {
    "llama": {
        "expert_count": Dialect(
            "mixtral",
            rows(
                _ATTENTION
                | {"ffn_gate_inp": "block_sparse_moe.gate"}
                | _experts("block_sparse_moe", gate="w1", up="w3", down="w2"),
                paired=True,
            ),
            _LOCAL_COUNTS,
        )
    },
    "gpt-oss": {
        "": Dialect(
            "gpt_oss",
            rows(
                BESIDE_BLOCKS
                | ATTENTION
                | {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
                | {"ffn_gate_inp": "mlp.router"}
                | _experts("mlp")
            )
            + _SINKS,
            {
                **_LOCAL_COUNTS,
                "intermediate_size": Key("expert_feed_forward_length", int, ...),
                "sliding_window": Key("attention.sliding_window", int, ...),
            },
            more=_gpt_oss,
        )
    },
    "granitemoe": {
        "": Dialect(
            "granitemoe",
            rows(
                _ATTENTION | {"ffn_gate_inp": "block_sparse_moe.router.layer"} | _experts("block_sparse_moe"),
                paired=True,
            ),
            GRANITE | _LOCAL_COUNTS,
        )
    },
    "olmoe": {
        "": Dialect(
            "olmoe", rows(_ATTENTION | HEAD_NORMS | _ROUTER | _experts("mlp")), _COUNTS, fixed={"norm_topk_prob": False}
        )
    },
    "qwen2moe": {
        "": Dialect(
            "qwen2_moe",
            rows(_ATTENTION | _SHARED | _experts("mlp")),
            {
                **_COUNTS,
                **_SIZE,
                "shared_expert_intermediate_size": Key("expert_shared_feed_forward_length", int, ...),
            },
            present={"qkv_bias": "attn_q.bias"},
            fixed={"norm_topk_prob": False},
        )
    },
    "qwen3moe": {
        "": Dialect(
            "qwen3_moe",
            rows(_ATTENTION | HEAD_NORMS | _ROUTER | _experts("mlp")),
            _COUNTS | _SIZE,
            fixed={"norm_topk_prob": True},
        )
    },
}
"""As `dense.DENSE`."""
