"""GGUF's names and keys of mixtures of experts, which it stores in stacks; `sigmoid.py` has those of later routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    BIAS,
    BIASES,
    COUNTS,
    EXPERT_SIZE,
    GATED,
    GRANITE,
    HEAD_NORMS,
    LATE_HEAD_NORMS,
    LOCAL_COUNTS,
    MIXTRAL_EXPERTS,
    NORMS_BEFORE,
    NORMS_BEFORE_BOTH,
    ROUTER,
    SHARED_EXPERTS,
    SHARED_GATE,
    SHARED_MLP,
    SINKS,
    WINDOW,
    beside_experts,
    experts,
    gated,
    longrope,
)
from quantkit.models.stored import Named

_ATTENTION: Names = BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE
_GRANITE: Names = _ATTENTION | {"ffn_gate_inp": "block_sparse_moe.router.layer"} | experts("block_sparse_moe")
_DBRX: Names = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
    "attn_norm": "norm_attn_norm.norm_1",
    "attn_qkv": tuple(f"norm_attn_norm.attn.{name}_proj" for name in "qkv"),
    "attn_output": "norm_attn_norm.attn.o_proj",
    "attn_output_norm": "norm_attn_norm.norm_2",
    "ffn_gate_inp": "ffn.router.layer",
    **experts("ffn", gate="w1", up="v1", down="w2"),
}
_LLAMA4: Names = {
    "ffn_gate_inp": "feed_forward.router",
    **gated("feed_forward"),
    **beside_experts("feed_forward.shared_expert"),
    **experts("feed_forward"),
}
_SHARED_SIZE = {"shared_expert_intermediate_size": Key("expert_shared_feed_forward_length", int, ...)}
_WITHOUT_QK_NORM = 128
"""Experts of Llama 4 Maverick, the one whose heads have no norm, which no key says."""


def _gpt_oss(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Its yarn blends between bounds that are not rounded, which no key says."""
    scaling = config["rope_scaling"]
    return {"rope_scaling": scaling and {**scaling, "truncate": False}}


def _dbrx(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Attention and experts have each an object of their own in the config."""
    attention = {"clip_qkv": "clip_qkv", "kv_n_heads": "num_key_value_heads", "rope_theta": "rope_theta"}
    feed_forward = {
        "ffn_hidden_size": "intermediate_size",
        "moe_num_experts": "num_experts",
        "moe_top_k": "num_experts_per_tok",
    }
    moved = dict.fromkeys((*attention.values(), *feed_forward.values()), ...)
    parts = {"attn_config": attention, "ffn_config": feed_forward}
    return moved | {
        part: {theirs: config[ours] for theirs, ours in fields.items() if ours in config}
        for part, fields in parts.items()
    }


def _llama4(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a file says that there is no window, all layers see all tokens, and have positions; it may have no experts.

    Chunks of 8192 tokens, and how far queries are scaled up, are said nowhere: they are the config's defaults.
    """
    fields: dict[str, Any] = {"use_qk_norm": config["num_local_experts"] != _WITHOUT_QK_NORM}
    if not config["num_local_experts"]:
        fields |= {"moe_layers": [], "num_local_experts": ..., "num_experts_per_tok": ...}
    if metadata.get("attention.sliding_window", int) == 0:
        fields |= {"attention_chunk_size": None, "no_rope_layers": [1] * config["num_hidden_layers"]}
    return fields


_QWEN3 = Dialect(
    "qwen3_moe",
    rows(_ATTENTION | HEAD_NORMS | ROUTER | experts("mlp")),
    COUNTS | EXPERT_SIZE,
    fixed={"norm_topk_prob": True},
)

MIXTURES: Mapping[str, dict[str, Dialect]] = {
    "llama": {"expert_count": Dialect("mixtral", rows(_ATTENTION | MIXTRAL_EXPERTS, paired=True), LOCAL_COUNTS)},
    "dbrx": {
        "": Dialect(
            "dbrx",
            rows(_DBRX),
            {**COUNTS, "clip_qkv": Key("attention.clamp_kqv", float)},
            present={},
            more=_dbrx,
            blocks="transformer.blocks",
        )
    },
    "ernie4_5-moe": {
        "": Dialect(
            "ernie4_5_moe",
            (
                *rows(_ATTENTION | GATED | ROUTER | SHARED_EXPERTS | experts("mlp")),
                Named("exp_probs_b.bias", "mlp.moe_statics.e_score_correction_bias"),
            ),
            {
                **EXPERT_SIZE,
                "moe_num_experts": Key("expert_count", int, ...),
                "moe_k": Key("expert_used_count", int, ...),
                "moe_num_shared_experts": Key("expert_shared_count", int, 0),
                "moe_layer_start_index": Key("leading_dense_block_count", int, 0),
                "moe_layer_interval": Key("interleave_moe_layer_step", int, 1),
            },
            present=BIAS,
        )
    },
    "gpt-oss": {
        "": Dialect(
            "gpt_oss",
            rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE_BOTH | {"ffn_gate_inp": "mlp.router"} | experts("mlp"))
            + SINKS,
            {
                **LOCAL_COUNTS,
                "intermediate_size": Key("expert_feed_forward_length", int, ...),
                "sliding_window": Key("attention.sliding_window", int, ...),
            },
            more=_gpt_oss,
        )
    },
    "granitemoe": {
        "expert_shared_feed_forward_length": Dialect(
            "granitemoeshared",
            rows(_GRANITE | SHARED_MLP, paired=True),
            {
                **GRANITE,
                **LOCAL_COUNTS,
                "shared_intermediate_size": Key("expert_shared_feed_forward_length", int, ...),
            },
        ),
        "": Dialect("granitemoe", rows(_GRANITE, paired=True), GRANITE | LOCAL_COUNTS),
    },
    "hunyuan-moe": {
        "": Dialect(
            "hunyuan_v1_moe",
            rows(
                _ATTENTION
                | LATE_HEAD_NORMS
                | {"ffn_gate_inp": "mlp.gate.wg"}
                | beside_experts("mlp.shared_mlp")
                | experts("mlp")
            ),
            {
                **EXPERT_SIZE,
                "num_experts": Key("expert_count", int, ...),
                "moe_topk": Key("expert_used_count", int, ...),
            },
            present=BIASES,
            accepted={"expert_shared_count": (1,)},
        )
    },
    "llama4": {
        "": Dialect(
            "llama4_text",
            rows(_ATTENTION | _LLAMA4),
            {
                "intermediate_size": Key("expert_feed_forward_length", int),
                "intermediate_size_mlp": Key("feed_forward_length", int, ...),
                "interleave_moe_layer_step": Key("interleave_moe_layer_step", int, 1),
                "num_local_experts": Key("expert_count", int, 0),
                "num_experts_per_tok": Key("expert_used_count", int, 1),
            },
            present=BIASES,
            more=_llama4,
        )
    },
    "olmoe": {
        "": Dialect(
            "olmoe", rows(_ATTENTION | HEAD_NORMS | ROUTER | experts("mlp")), COUNTS, fixed={"norm_topk_prob": False}
        )
    },
    "phimoe": {
        "": Dialect(
            "phimoe",
            rows(_ATTENTION | MIXTRAL_EXPERTS),
            LOCAL_COUNTS | WINDOW,
            present=BIASES | {"lm_head_bias": "output.bias"},
            more=longrope,
        )
    },
    "qwen2moe": {
        "": Dialect(
            "qwen2_moe",
            rows(_ATTENTION | ROUTER | beside_experts("mlp.shared_expert") | experts("mlp")) + SHARED_GATE,
            COUNTS | EXPERT_SIZE | _SHARED_SIZE,
            present={"qkv_bias": "attn_q.bias"},
            fixed={"norm_topk_prob": False},
        )
    },
    "qwen3moe": {"": _QWEN3},
    "qwen3vlmoe": {"": _QWEN3},
}
"""As `dense.DENSE`."""
