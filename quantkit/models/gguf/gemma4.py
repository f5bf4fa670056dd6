"""GGUF's names and keys of Gemma 4: heads that differ between layers, embeddings of layers, experts beside MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.models.gguf.config import ROPE_FREQS
from quantkit.models.gguf.dense import ATTENTION, BESIDE_BLOCKS, GATED, HEAD_NORMS, NORMS_AROUND
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.stored import Named

_LAYERS: Names = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
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
_FIELDS = {
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


GEMMA4: Mapping[str, Mapping[str, Dialect]] = {
    "gemma4": {
        "": Dialect(
            "gemma4_text",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_AROUND | GATED | _LAYERS | _EXPERTS) + _SCALES,
            _FIELDS,
            present={"attention_bias": "attn_q.bias"},
            more=_gemma4,
            own_heads=True,
            own_rope=True,
        )
    }
}
"""As `dense.DENSE`."""
