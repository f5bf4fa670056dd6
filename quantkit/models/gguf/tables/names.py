"""Names of GGUF's tensors, and keys, that several architectures share; the files beside this one have the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.config import every_nth_full
from quantkit.models.gguf.config import layer_types
from quantkit.models.gguf.dialect import Fields, Key, Names
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.stored import Named

BESIDE_BLOCKS: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def attention(module: str) -> Names:
    """Queries, keys and values, which may be stored as one: llama.cpp's converter does that when it is asked to."""
    q, k, v, output = (f"{module}.{name}_proj" for name in "qkvo")
    return {"attn_q": q, "attn_k": k, "attn_v": v, "attn_qkv": (q, k, v), "attn_output": output}


def gated(module: str) -> Names:
    """An MLP with a gate."""
    return {f"ffn_{name}": f"{module}.{name}_proj" for name in ("gate", "up", "down")}


ATTENTION: Names = attention("self_attn")
QKV: Names = {"attn_qkv": ATTENTION["attn_qkv"]}
HEAD_NORMS: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LATE_HEAD_NORMS: Names = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
NORMS_BEFORE: Names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
NORMS_BEHIND: Names = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
NORMS_AROUND: Names = NORMS_BEHIND | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
NORMS_BEFORE_BOTH: Names = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
"""As `NORMS_BEFORE`, in architectures that call the second one by what it stands behind."""
GATED: Names = gated("mlp")
GATED_FUSED: Names = {"ffn_up": ("mlp.gate_proj", "mlp.up_proj"), "ffn_down": "mlp.down_proj"}
UNGATED: Names = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LLAMA: Names = BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | GATED
SHIFTED = ("attn_norm", "ffn_norm", "output_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")
"""Norms whose weights are stored with 1 added, where an architecture does that."""
SINKS = (Named("attn_sinks.weight", "self_attn.sinks"),)

BIAS = {"use_bias": "attn_output.bias"}
BIASES = {"attention_bias": "attn_q.bias"}
WINDOW = {"sliding_window": Key("attention.sliding_window", int)}
LOGIT_SCALE = {"logit_scale": Key("logit_scale", float, ...)}
GRANITE = {
    "attention_multiplier": Key("attention.scale", float),
    "embedding_multiplier": Key("embedding_scale", float),
    "residual_multiplier": Key("residual_scale", float),
    "logits_scaling": Key("logit_scale", float),
}


def as_tensors(field: str) -> Fields:
    """The size of the MLP as its matrix has it: the converter writes four times the hidden size, whatever it is."""
    return lambda metadata, config: {field: metadata.tensor("blk.0.ffn_up.weight").shape[0]}


def windowed(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 3 and EXAONE: three of four layers see a window, unless the file says otherwise."""
    layers = config["num_hidden_layers"]
    if not config.get("sliding_window"):
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    return {"layer_types": layer_types(metadata, layers, every_nth_full(4, layers))}


def longrope(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Phi: a window of 0 is none; both places of the original length are the same."""
    original = (config["rope_scaling"] or config).get("original_max_position_embeddings")
    fields = {"sliding_window": config.get("sliding_window") or None}
    return fields | {"original_max_position_embeddings": original or config["max_position_embeddings"]}


# Mixtures of experts.


def experts(module: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Names:
    """Stacks of experts, whose gates and products beside them may be one stack."""
    prefix = f"{module}.experts.*."
    return {
        "ffn_gate_exps": prefix + gate,
        "ffn_up_exps": prefix + up,
        "ffn_down_exps": prefix + down,
        "ffn_gate_up_exps": (prefix + gate, prefix + up),
    }


def beside_experts(module: str) -> Names:
    """The MLP that all tokens go to."""
    parts = {"ffn_gate_shexp": "gate_proj", "ffn_up_shexp": "up_proj", "ffn_down_shexp": "down_proj"}
    return {name: f"{module}.{part}" for name, part in parts.items()}


SHARED_EXPERTS: Names = beside_experts("mlp.shared_experts")
SHARED_MLP: Names = beside_experts("shared_mlp")
ROUTER: Names = {"ffn_gate_inp": "mlp.gate"}
MIXTRAL_EXPERTS: Names = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    **experts("block_sparse_moe", gate="w1", up="w3", down="w2"),
}

USED = {"num_experts_per_tok": Key("expert_used_count", int, ...)}
COUNTS = {"num_experts": Key("expert_count", int, ...), **USED}
LOCAL_COUNTS = {"num_local_experts": Key("expert_count", int, ...), **USED}
EXPERT_SIZE = {"moe_intermediate_size": Key("expert_feed_forward_length", int, ...)}
GROUPED = {
    **USED,
    **EXPERT_SIZE,
    "n_routed_experts": Key("expert_count", int, ...),
    "n_shared_experts": Key("expert_shared_count", int, 1),
    "first_k_dense_replace": Key("leading_dense_block_count", int, 0),
    "n_group": Key("expert_group_count", int, 1),
    "topk_group": Key("expert_group_used_count", int, 1),
    "norm_topk_prob": Key("expert_weights_norm", bool, False),
    "routed_scaling_factor": Key("expert_weights_scale", float, 1.0),
}
"""Of routers that choose experts in groups, by sigmoids and biases."""
EXPERT_BIAS = (Named("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),)
SIGMOID = {"expert_gating_func": (2,)}
SHARED_GATE = (Named("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"),)
