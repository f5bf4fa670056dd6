"""GGUF's names and keys of mixtures of experts, which it stores in stacks; `dense.py` has what others have as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.dense import (
    ATTENTION,
    BESIDE_BLOCKS,
    GATED,
    GRANITE,
    HEAD_NORMS,
    NORMS_BEFORE,
    WINDOW,
    windowed,
)
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.stored import Named

_ATTENTION: Names = BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE


def experts(module: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Names:
    parts = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    return {name: f"{module}.experts.*.{part}" for name, part in parts.items()}


_USED = {"num_experts_per_tok": Key("expert_used_count", int, ...)}
_COUNTS = {"num_experts": Key("expert_count", int, ...), **_USED}
_LOCAL_COUNTS = {"num_local_experts": Key("expert_count", int, ...), **_USED}
_SIZE = {"moe_intermediate_size": Key("expert_feed_forward_length", int, ...)}
_SHARED: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_AFMOE_NORMS: Names = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_mlp_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
SHARED_EXPERTS: Names = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
SHARED_MLP: Names = {
    "ffn_gate_shexp": "shared_mlp.gate_proj",
    "ffn_up_shexp": "shared_mlp.up_proj",
    "ffn_down_shexp": "shared_mlp.down_proj",
}
GROUPED = {
    "n_routed_experts": Key("expert_count", int, ...),
    "num_experts_per_tok": Key("expert_used_count", int, ...),
    "n_shared_experts": Key("expert_shared_count", int, 1),
    "moe_intermediate_size": Key("expert_feed_forward_length", int, ...),
    "first_k_dense_replace": Key("leading_dense_block_count", int, 0),
    "n_group": Key("expert_group_count", int, 1),
    "topk_group": Key("expert_group_used_count", int, 1),
    "norm_topk_prob": Key("expert_weights_norm", bool, False),
    "routed_scaling_factor": Key("expert_weights_scale", float, 1.0),
}
"""Of routers that choose experts in groups, by sigmoids and biases."""
EXPERT_BIAS = (Named("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),)
_BIAS_BESIDE_GATE = (Named("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias"),)
SIGMOID = {"expert_gating_func": (2,)}
SHARED_GATE = (Named("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"),)
_ROUTER: Names = {"ffn_gate_inp": "mlp.gate"}
_SINKS = (Named("attn_sinks.weight", "self_attn.sinks"),)


def _gpt_oss(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Its yarn blends between bounds that are not rounded, which no key says."""
    scaling = config["rope_scaling"]
    return {"rope_scaling": scaling and {**scaling, "truncate": False}}


MIXTURES: Mapping[str, dict[str, Dialect]] = {
    "llama": {
        "expert_count": Dialect(
            "mixtral",
            rows(
                _ATTENTION
                | {"ffn_gate_inp": "block_sparse_moe.gate"}
                | experts("block_sparse_moe", gate="w1", up="w3", down="w2"),
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
                | experts("mlp")
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
                **_COUNTS,
                **_SIZE,
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
    "ernie4_5-moe": {
        "": Dialect(
            "ernie4_5_moe",
            (
                *rows(_ATTENTION | GATED | _ROUTER | SHARED_EXPERTS | experts("mlp")),
                Named("exp_probs_b.bias", "mlp.moe_statics.e_score_correction_bias"),
            ),
            {
                **_SIZE,
                "moe_num_experts": Key("expert_count", int, ...),
                "moe_k": Key("expert_used_count", int, ...),
                "moe_num_shared_experts": Key("expert_shared_count", int, 0),
                "moe_layer_start_index": Key("leading_dense_block_count", int, 0),
                "moe_layer_interval": Key("interleave_moe_layer_step", int, 1),
            },
            present={"use_bias": "attn_output.bias"},
        )
    },
    "exaone-moe": {
        "": Dialect(
            "exaone_moe",
            (
                *rows(_ATTENTION | HEAD_NORMS | GATED | _ROUTER | SHARED_EXPERTS | experts("mlp")),
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
            rows(
                BESIDE_BLOCKS
                | ATTENTION
                | HEAD_NORMS
                | GATED
                | {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
                | _ROUTER
                | SHARED_EXPERTS
                | experts("mlp")
            )
            + EXPERT_BIAS,
            GROUPED,
            present={"attention_bias": "attn_q.bias", "use_qk_norm": "attn_q_norm.weight"},
            accepted=SIGMOID,
        )
    },
    "minimax-m2": {
        "": Dialect(
            "minimax_m2",
            rows(
                _ATTENTION
                | HEAD_NORMS
                | {"ffn_gate_inp": "block_sparse_moe.gate"}
                | experts("block_sparse_moe", gate="w1", up="w3", down="w2")
            )
            + _BIAS_BESIDE_GATE,
            {
                **_LOCAL_COUNTS,
                "intermediate_size": Key("expert_feed_forward_length", int, ...),
                "rotary_dim": Key("rope.dimension_count", int),
            },
            accepted=SIGMOID,
        )
    },
    "granitemoe": {
        "expert_shared_feed_forward_length": Dialect(
            "granitemoeshared",
            rows(
                _ATTENTION
                | {"ffn_gate_inp": "block_sparse_moe.router.layer"}
                | SHARED_MLP
                | experts("block_sparse_moe"),
                paired=True,
            ),
            {
                **GRANITE,
                **_LOCAL_COUNTS,
                "shared_intermediate_size": Key("expert_shared_feed_forward_length", int, ...),
            },
        ),
        "": Dialect(
            "granitemoe",
            rows(
                _ATTENTION | {"ffn_gate_inp": "block_sparse_moe.router.layer"} | experts("block_sparse_moe"),
                paired=True,
            ),
            GRANITE | _LOCAL_COUNTS,
        ),
    },
    "olmoe": {
        "": Dialect(
            "olmoe", rows(_ATTENTION | HEAD_NORMS | _ROUTER | experts("mlp")), _COUNTS, fixed={"norm_topk_prob": False}
        )
    },
    "qwen2moe": {
        "": Dialect(
            "qwen2_moe",
            rows(_ATTENTION | _SHARED | experts("mlp")) + SHARED_GATE,
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
            rows(_ATTENTION | HEAD_NORMS | _ROUTER | experts("mlp")),
            _COUNTS | _SIZE,
            fixed={"norm_topk_prob": True},
        )
    },
}
"""As `dense.DENSE`."""
