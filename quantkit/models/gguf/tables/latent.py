"""GGUF's names and keys of architectures with latent attention: keys and values come from a latent; as `dense.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    BESIDE_BLOCKS,
    EXPERT_BIAS,
    GATED,
    GROUPED,
    NORMS_BEFORE,
    ROUTER,
    SHARED_EXPERTS,
    SIGMOID,
    experts,
)
from quantkit.models.stored import Fused, Named

_LATENT: Names = (
    BESIDE_BLOCKS
    | NORMS_BEFORE
    | GATED
    | {
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_output": "self_attn.o_proj",
    }
)
_LATENT_HEADS = (
    Named("attn_k_b.weight", "self_attn.k_b_proj.weight", decoder="heads_transposed"),
    Named("attn_v_b.weight", "self_attn.v_b_proj.weight"),
    Fused("attn_kv_b", ("self_attn.k_b_proj", "self_attn.v_b_proj"), groups="num_attention_heads"),
)
_LATENT_RANKS = {"kv_lora_rank": Key("attention.kv_lora_rank", int, ...)}
_LATENT_EXPERTS = SHARED_EXPERTS | ROUTER | experts("mlp")
_LATENT_BIASES = {"attention_bias": "attn_kv_a_mqa.bias"}


def _latent(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of heads as latents make them: of keys that end in `_mla`, or in older files of the usual ones."""
    turning = metadata.require("rope.dimension_count", int)
    key, value = (
        metadata.get(f"attention.{name}_length_mla", int) or metadata.require(f"attention.{name}_length", int)
        for name in ("key", "value")
    )
    metadata.get("attention.key_length", int)
    metadata.get("attention.value_length", int)
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": metadata.get("attention.q_lora_rank", int) or None,
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": key - turning,
        "v_head_dim": value,
    }


def _latent_v2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where there are groups, experts are chosen in them."""
    method = "group_limited_greedy" if config["n_group"] > 1 else "greedy"
    return {**_latent(metadata, config), "topk_method": method}


def _minicpm3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """No key says how large values are: what keys leave of the matrix that makes both."""
    nope = metadata.require("attention.key_length", int) - (turning := metadata.require("rope.dimension_count", int))
    heads = config["num_attention_heads"]
    return {
        "num_key_value_heads": heads,
        "q_lora_rank": metadata.require("attention.q_lora_rank", int),
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": nope,
        "v_head_dim": metadata.tensor("blk.0.attn_kv_b.weight").shape[0] // max(1, heads) - nope,
    }


LATENT: Mapping[str, Mapping[str, Dialect]] = {
    "deepseek2": {
        "exp_probs_b.bias": Dialect(
            "deepseek_v3",
            (
                *rows(_LATENT | _LATENT_EXPERTS),
                *_LATENT_HEADS,
                *EXPERT_BIAS,
            ),
            GROUPED | _LATENT_RANKS,
            present=_LATENT_BIASES,
            more=_latent,
            own_heads=True,
            accepted=SIGMOID,
        ),
        "expert_count": Dialect(
            "deepseek_v2",
            (*rows(_LATENT | _LATENT_EXPERTS), *_LATENT_HEADS),
            GROUPED | _LATENT_RANKS,
            present=_LATENT_BIASES,
            more=_latent_v2,
            own_heads=True,
            accepted={"expert_gating_func": (1,)},
        ),
        "": Dialect(
            "youtu",
            (*rows(_LATENT), *_LATENT_HEADS),
            _LATENT_RANKS,
            present=_LATENT_BIASES,
            more=_latent,
            own_heads=True,
            accepted={"leading_dense_block_count": tuple(range(1000))},
        ),
    },
    "minicpm3": {
        "": Dialect(
            "minicpm3",
            (*rows(_LATENT), *_LATENT_HEADS),
            _LATENT_RANKS,
            present=_LATENT_BIASES,
            fixed={"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256},
            more=_minicpm3,
            own_heads=True,
        )
    },
}
"""As `dense.DENSE`."""
