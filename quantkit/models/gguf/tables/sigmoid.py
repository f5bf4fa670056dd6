"""GGUF's names and keys of mixtures whose routers add a bias to logistic functions, and of others built like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    BIASES,
    COUNTS,
    EXPERT_BIAS,
    EXPERT_SIZE,
    GATED,
    GROUPED,
    HEAD_NORMS,
    LLAMA,
    LOCAL_COUNTS,
    LOGIT_SCALE,
    MIXTRAL_EXPERTS,
    NORMS_BEFORE,
    NORMS_BEFORE_BOTH,
    ROUTER,
    SHARED_EXPERTS,
    SIGMOID,
    USED,
    WINDOW,
    beside_experts,
    experts,
    windowed,
)
from quantkit.models.stored import Named

_EXPERTS: Names = ROUTER | SHARED_EXPERTS | experts("mlp")
_AFMOE_NORMS: Names = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_mlp_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_QK_NORM = {"use_qk_norm": "attn_q_norm.weight"}


def _cohere2(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """The first layers, which have no experts, see all tokens, and have positions all the same."""
    sliding = metadata.flags("attention.sliding_window_pattern", config["num_hidden_layers"])
    types = None if sliding is None else ["sliding_attention" if flag else "full_attention" for flag in sliding]
    softmax = metadata.get("expert_gating_func", int, 2) == 1
    return {"layer_types": types, "expert_selection_fn": "softmax" if softmax else "sigmoid"}


def _hunyuan(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """No key says which layers have experts; the one for all tokens is as large as so many of them."""
    sparse = [f"blk.{layer}.ffn_gate_inp.weight" in metadata.tensors for layer in range(config["num_hidden_layers"])]
    shared, size = metadata.require("expert_shared_feed_forward_length", int), config["moe_intermediate_size"]
    return {
        "mlp_layer_types": ["sparse" if flag else "dense" for flag in sparse],
        "n_shared_experts": shared // max(1, size),
    }


SIGMOID_MIXTURES: Mapping[str, dict[str, Dialect]] = {
    "afmoe": {
        "": Dialect(
            "afmoe",
            (
                *rows(
                    BESIDE_BLOCKS
                    | ATTENTION
                    | HEAD_NORMS
                    | GATED
                    | _AFMOE_NORMS
                    | SHARED_EXPERTS
                    | experts("mlp")
                    | {"attn_gate": "self_attn.gate_proj", "ffn_gate_inp": "mlp.router.gate"}
                ),
                Named("exp_probs_b.bias", "mlp.expert_bias"),
            ),
            {
                **COUNTS,
                **EXPERT_SIZE,
                **WINDOW,
                "num_shared_experts": Key("expert_shared_count", int, 0),
                "num_dense_layers": Key("leading_dense_block_count", int, 0),
                "route_scale": Key("expert_weights_scale", float, 1.0),
                "route_norm": Key("expert_weights_norm", bool, False),
            },
            fixed={"global_attn_every_n_layers": 4, "mup_enabled": True},
            accepted=SIGMOID,
        )
    },
    "bailingmoe2": {
        "": Dialect(
            "sarvam_moe",
            rows(LLAMA | HEAD_NORMS | _EXPERTS) + EXPERT_BIAS,
            GROUPED,
            present=BIASES | _QK_NORM,
            accepted=SIGMOID,
        )
    },
    "cohere2moe": {
        "": Dialect(
            "cohere2_moe",
            rows(LLAMA | _EXPERTS),
            {
                **LOGIT_SCALE,
                **WINDOW,
                **COUNTS,
                "intermediate_size": Key("expert_feed_forward_length", int, ...),
                "prefix_dense_intermediate_size": Key("feed_forward_length", int),
                "num_shared_experts": Key("expert_shared_count", int, 0),
                "norm_topk_prob": Key("expert_weights_norm", bool, False),
                "first_k_dense_replace": Key("leading_dense_block_count", int, 0),
            },
            present=BIASES,
            more=_cohere2,
        )
    },
    "dots1": {
        "": Dialect(
            "dots1",
            rows(LLAMA | HEAD_NORMS | _EXPERTS) + EXPERT_BIAS,
            GROUPED,
            present=BIASES,
            fixed={"sliding_window": None},
            accepted=SIGMOID,
        )
    },
    "exaone-moe": {
        "": Dialect(
            "exaone_moe",
            (
                *rows(LLAMA | HEAD_NORMS | _EXPERTS),
                Named("exp_probs_b.bias", "mlp.e_score_correction_bias"),
            ),
            GROUPED | WINDOW,
            present={},
            more=windowed,
            accepted=SIGMOID,
        )
    },
    "glm4moe": {
        "": Dialect(
            "glm4_moe",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | GATED | NORMS_BEFORE_BOTH | _EXPERTS) + EXPERT_BIAS,
            GROUPED,
            present=BIASES | _QK_NORM,
            accepted=SIGMOID,
        )
    },
    "hy_v3": {
        "": Dialect(
            "hy_v3",
            (
                *rows(
                    LLAMA
                    | HEAD_NORMS
                    | {"ffn_gate_inp": "mlp.router.gate"}
                    | beside_experts("mlp.shared_mlp")
                    | experts("mlp")
                ),
                Named("exp_probs_b", "mlp.expert_bias"),
            ),
            {
                **USED,
                **EXPERT_SIZE,
                "n_routed_experts": Key("expert_count", int, ...),
                "norm_topk_prob": Key("expert_weights_norm", bool, False),
                "routed_scaling_factor": Key("expert_weights_scale", float, 1.0),
            },
            present=BIASES | {"mlp_bias": "ffn_up.bias"},
            more=_hunyuan,
            accepted=SIGMOID,
        )
    },
    "minimax-m2": {
        "": Dialect(
            "minimax_m2",
            (
                *rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | HEAD_NORMS | MIXTRAL_EXPERTS),
                Named("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias"),
            ),
            {
                **LOCAL_COUNTS,
                "intermediate_size": Key("expert_feed_forward_length", int, ...),
                "rotary_dim": Key("rope.dimension_count", int),
            },
            accepted=SIGMOID,
        )
    },
}
"""As `dense.DENSE`."""
