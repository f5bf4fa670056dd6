"""GGUF's names and keys of dense architectures with LayerNorms, biases or blocks like GPT's; as `dense.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    BIAS,
    HEAD_NORMS,
    LLAMA,
    NORMS_BEFORE,
    QKV,
    UNGATED,
    as_tensors,
)


def _bigcode(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """StarCoder has one head of keys."""
    return {**as_tensors("n_inner")(metadata, config), "multi_query": True, "num_key_value_heads": ...}


def _falcon(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Falcon's first models are the later ones with one norm, and one head of keys."""
    norms = {} if metadata.has("attn_norm_2.weight") else {"num_ln_in_parallel_attn": 1}
    size = as_tensors("ffn_hidden_size")(metadata, config)
    return {**norms, **size, "new_decoder_architecture": True}


def _mpt(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Attention has an object of its own in the config."""
    steepest = metadata.get("attention.max_alibi_bias", float, 0.0)
    attention = {"alibi": steepest != 0, "alibi_bias_max": steepest, "clip_qkv": config.get("clip_qkv")}
    return {"attn_config": attention, "clip_qkv": ...}


_FALCON: Names = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_output": "self_attn.o_proj",
    **QKV,
    **UNGATED,
}
_NEOX: Names = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "lm_head",
    "attn_output": "self_attn.o_proj",
    **QKV,
    **NORMS_BEFORE,
    **UNGATED,
}
_GPT2: Names = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attn_output": "attn.o_proj",
    **UNGATED,
}
_BLOOM: Names = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_qkv": ("self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj"),
    "attn_output": "self_attention.o_proj",
    **NORMS_BEFORE,
    **UNGATED,
}
_MPT: Names = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
    "attn_norm": "norm_1",
    "ffn_norm": "norm_2",
    "attn_qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attn_output": "attn.o_proj",
    "ffn_up": "ffn.up_proj",
    "ffn_down": "ffn.down_proj",
}
_PHI2 = BESIDE_BLOCKS | ATTENTION | UNGATED | {"output_norm": "model.final_layernorm", "attn_norm": "input_layernorm"}
_LAYER_NORM = {"layer_norm_epsilon": Key("attention.layer_norm_epsilon", float)}

GPT: Mapping[str, dict[str, Dialect]] = {
    "bloom": {"": Dialect("bloom", rows(_BLOOM), _LAYER_NORM, present={}, blocks="transformer.h")},
    "falcon": {
        "attn_norm_2.weight": Dialect(
            "falcon",
            rows(_FALCON | {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}),
            present={"bias": "attn_output.bias"},
            more=_falcon,
            blocks="transformer.h",
        ),
        "": Dialect(
            "falcon",
            rows(_FALCON | {"attn_norm": "input_layernorm"}),
            present={"bias": "attn_output.bias"},
            more=_falcon,
            blocks="transformer.h",
        ),
    },
    "gpt2": {
        "": Dialect("gpt2", rows(_GPT2), _LAYER_NORM, present={}, more=as_tensors("n_inner"), blocks="transformer.h")
    },
    "gptneox": {
        "": Dialect(
            "gpt_neox",
            rows(_NEOX),
            {"use_parallel_residual": Key("use_parallel_residual", bool, True)},
            present={"attention_bias": "attn_qkv.bias"},
            blocks="gpt_neox.layers",
        )
    },
    "jais2": {"": Dialect("jais2", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED))},
    "mpt": {
        "": Dialect(
            "mpt",
            rows(_MPT),
            {**_LAYER_NORM, "clip_qkv": Key("attention.clamp_kqv", float)},
            present={},
            more=_mpt,
            blocks="transformer.blocks",
        )
    },
    "nemotron": {
        "": Dialect(
            "nemotron",
            rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED, shifted=("attn_norm", "ffn_norm", "output_norm")),
        )
    },
    "phi2": {"": Dialect("phi", rows(_PHI2), present={}, more=as_tensors("intermediate_size"))},
    "stablelm": {
        "": Dialect(
            "stablelm",
            rows(LLAMA | HEAD_NORMS),
            {"use_parallel_residual": Key("use_parallel_residual", bool, True)},
            present={"use_qkv_bias": "attn_q.bias", "qk_layernorm": "attn_q_norm.weight"},
        )
    },
    "starcoder": {
        "": Dialect("gpt_bigcode", rows(_GPT2), _LAYER_NORM, present={}, more=_bigcode, blocks="transformer.h")
    },
    "starcoder2": {"": Dialect("starcoder2", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED), present=BIAS)},
}
"""As `dense.DENSE`."""
