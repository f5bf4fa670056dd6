"""GGUF's names and keys of all Gemmas.

Gemma 4 has heads that differ between layers, embeddings of layers as Gemma 3n, and experts beside MLPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.models.config import every_nth_full
from quantkit.models.gguf.config import ROPE_FREQS, layer_types
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    BIASES,
    GATED,
    HEAD_NORMS,
    LLAMA,
    NORMS_AROUND,
    SHIFTED,
)
from quantkit.models.stored import Named


def _gemma(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """The largest Gemma 2 and 3, known by their layers, divide scores by another number than their head size."""
    share = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": share if config["num_hidden_layers"] in (46, 62) else config["head_dim"]}


def _gemma3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    types = {"layer_types": layer_types(metadata, layers, every_nth_full(6, layers))}
    return _gemma(metadata, config) | (types if config.get("sliding_window") else {"sliding_window_pattern": 1})


# Gemma 3n and 4: embeddings of layers.

_LAYERS: Names = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_ALTUP: Names = {
    "altup_proj": "model.altup_projections.*",
    "altup_unembd_proj": "model.altup_unembed_projections.*",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_correct_coef": "altup.correction_coefs",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
_CORRECTION = (Named("altup_correct_scale.weight", "altup.correct_output_scale"),)
_EXPERTS: Names = {
    "ffn_gate_inp": "router.proj",
    "ffn_gate_up_exps": ("experts.*.gate_proj", "experts.*.up_proj"),
    "ffn_down_exps": "experts.*.down_proj",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
_SCALES = (
    Named("layer_output_scale.weight", "layer_scalar"),
    Named("ffn_gate_inp.scale", "router.scale"),
    Named("ffn_down_exps.scale", "router.per_expert_scale"),
)
_FIELDS_3N = {
    "intermediate_size": Key("feed_forward_length", list),
    "final_logit_softcapping": Key("final_logit_softcapping", float, 30.0),
    "rope_local_base_freq": Key("rope.freq_base_swa", float, 10000.0),
    "sliding_window": Key("attention.sliding_window", int, ...),
    "num_kv_shared_layers": Key("attention.shared_kv_layers", int, 0),
    "hidden_size_per_layer_input": Key("embedding_length_per_layer_input", int, ...),
    "altup_num_inputs": Key("altup.num_inputs", int, ...),
    "altup_active_idx": Key("altup.active_idx", int, 0),
}
_FIELDS_4 = {
    "intermediate_size": Key("feed_forward_length", list),
    "num_key_value_heads": Key("attention.head_count_kv", list),
    "head_dim": Key("attention.key_length_swa", int, ...),
    "global_head_dim": Key("attention.key_length", int, ...),
    "sliding_window": Key("attention.sliding_window", int, ...),
    "num_kv_shared_layers": Key("attention.shared_kv_layers", int, 0),
    "hidden_size_per_layer_input": Key("embedding_length_per_layer_input", int, 0),
    "num_experts": Key("expert_count", int),
    "top_k_experts": Key("expert_used_count", int),
    "moe_intermediate_size": Key("expert_feed_forward_length", int),
}


def _gemma3n(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sparsities are stored as the deviation that so many gates lie below; of layers that share keys all is said."""
    layers, sizes = config["num_hidden_layers"], config["intermediate_size"]
    deviations = metadata.decimals("gemma3n.activation_sparsity_scale", layers) or [-math.inf] * layers
    rank, table = metadata.tensor("blk.0.laurel_l.weight"), metadata.tensor("per_layer_token_embd.weight")
    return {
        "activation_sparsity_pattern": [round(NormalDist().cdf(deviation), 6) for deviation in deviations],
        "intermediate_size": sizes if len(sizes) > 1 else sizes[0],
        "laurel_rank": rank.shape[0],
        "layer_types": layer_types(metadata, layers, every_nth_full(5, layers)),
        "vocab_size_per_layer_input": table.shape[0],
    }


def _gemma4(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers, sizes = config["num_hidden_layers"], config["intermediate_size"]
    sliding = metadata.flags("attention.sliding_window_pattern", layers)
    heads = config["num_key_value_heads"]
    heads = heads * layers if len(heads) == 1 else heads
    if sliding is None or len(heads) < layers or all(sliding):
        raise CheckpointError("its metadata does not say of each layer how many key-value heads it has, or a window")
    full = sliding.index(False)
    same = any(f"blk.{layer}.attn_v.weight" not in metadata.tensors for layer in range(full + 1) if not sliding[layer])
    table = metadata.tensors.get("per_layer_token_embd.weight")
    return {
        "attention_k_eq_v": same,
        "enable_moe_block": bool(config.get("num_experts")),
        "final_logit_softcapping": metadata.get("final_logit_softcapping", float),
        "intermediate_size": min(sizes),
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in sliding],
        "num_global_key_value_heads": heads[full] if same else None,
        "num_key_value_heads": heads[sliding.index(True)] if True in sliding else heads[full],
        "rope_parameters": _rope(metadata, config),
        "rope_theta": ...,
        "use_double_wide_mlp": max(sizes) == 2 * min(sizes),
        "vocab_size_per_layer_input": ... if table is None else table.shape[0],
    }


def _rope(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a token sees all others, only the first pairs of channels turn: the others are divided by a huge number."""
    factors = metadata.numbers(ROPE_FREQS) or [1.0]
    local = metadata.get("rope.freq_base_swa", float, 10000.0)
    return {
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": config["rope_theta"],
            "partial_rotary_factor": factors.count(1.0) / len(factors),
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


GEMMA: Mapping[str, Mapping[str, Dialect]] = {
    "gemma": {"": Dialect("gemma", rows(LLAMA, shifted=SHIFTED))},
    "gemma2": {
        "": Dialect(
            "gemma2",
            rows(BESIDE_BLOCKS | ATTENTION | NORMS_AROUND | GATED, shifted=SHIFTED),
            {
                "attn_logit_softcapping": Key("attn_logit_softcapping", float, 50.0),
                "final_logit_softcapping": Key("final_logit_softcapping", float, 30.0),
                "sliding_window": Key("attention.sliding_window", int, 4096),
            },
            more=_gemma,
        )
    },
    "gemma3": {
        "": Dialect(
            "gemma3_text",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_AROUND | GATED, shifted=SHIFTED),
            {
                "final_logit_softcapping": Key("final_logit_softcapping", float),
                "rope_local_base_freq": Key("rope.freq_base_swa", float, 10000.0),
                "sliding_window": Key("attention.sliding_window", int),
            },
            more=_gemma3,
        )
    },
    "gemma3n": {
        "": Dialect(
            "gemma3n_text",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_AROUND | GATED | _LAYERS | _ALTUP) + _CORRECTION,
            _FIELDS_3N,
            present=BIASES,
            more=_gemma3n,
        )
    },
    "gemma4": {
        "": Dialect(
            "gemma4_text",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_AROUND | GATED | _LAYERS | _EXPERTS) + _SCALES,
            _FIELDS_4,
            present=BIASES,
            more=_gemma4,
            own_heads=True,
            own_rope=True,
        )
    },
}
"""As `dense.DENSE`."""
