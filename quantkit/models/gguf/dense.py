"""GGUF's names and keys of dense architectures.

Written down from the files that llama.cpp's converter makes (`convert_hf_to_gguf.py`), which tests convert anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.config import every_nth_full
from quantkit.models.gguf.config import layer_types
from quantkit.models.gguf.dialect import Dialect, Fields, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata

BESIDE_BLOCKS: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION: Names = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
QKV: Names = {"attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
HEAD_NORMS: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS_BEFORE: Names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
NORMS_BEHIND: Names = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
NORMS_AROUND: Names = NORMS_BEHIND | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
GATED: Names = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
GATED_FUSED: Names = {"ffn_up": ("mlp.gate_proj", "mlp.up_proj"), "ffn_down": "mlp.down_proj"}
UNGATED: Names = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

LLAMA: Names = BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | GATED
SHIFTED = ("attn_norm", "ffn_norm", "output_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")
WINDOW = {"sliding_window": Key("attention.sliding_window", int)}
LOGIT_SCALE = {"logit_scale": Key("logit_scale", float, ...)}
GRANITE = {
    "attention_multiplier": Key("attention.scale", float),
    "embedding_multiplier": Key("embedding_scale", float),
    "residual_multiplier": Key("residual_scale", float),
    "logits_scaling": Key("logit_scale", float),
}


def _phi3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A window of 0 is none; both places of the original length are the same."""
    original = (config["rope_scaling"] or config).get("original_max_position_embeddings")
    fields = {"sliding_window": config.get("sliding_window") or None}
    return fields | {"original_max_position_embeddings": original or config["max_position_embeddings"]}


def _ministral3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Its yarn grows with a factor for long texts, and is not scaled: the key holds `mscale_all_dim` itself."""
    scale = metadata.get("rope.scaling.yarn_log_multiplier", float, 1.0)
    beta = config["llama_4_scaling_beta"]
    scaling = {**(config["rope_scaling"] or {}), "mscale": scale, "mscale_all_dim": scale, "llama_4_scaling_beta": beta}
    return {"rope_scaling": scaling, "llama_4_scaling_beta": ...}


def _as_tensors(field: str) -> Fields:
    """The size of the MLP as its matrix has it: the converter writes four times the hidden size, whatever it is."""
    return lambda metadata, config: {field: metadata.tensor("blk.0.ffn_up.weight").shape[0]}


def _bigcode(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """StarCoder has one head of keys."""
    return {**_as_tensors("n_inner")(metadata, config), "multi_query": True, "num_key_value_heads": ...}


def _gemma(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """The largest Gemma 2 and 3, known by their layers, divide scores by another number than their head size."""
    share = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": share if config["num_hidden_layers"] in (46, 62) else config["head_dim"]}


def _gemma3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    types = {"layer_types": layer_types(metadata, layers, every_nth_full(6, layers))}
    return _gemma(metadata, config) | (types if config.get("sliding_window") else {"sliding_window_pattern": 1})


def windowed(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 3 and EXAONE: three of four layers see a window, unless the file says otherwise."""
    layers = config["num_hidden_layers"]
    if not config.get("sliding_window"):
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    return {"layer_types": layer_types(metadata, layers, every_nth_full(4, layers))}


def _falcon(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Falcon's first models are the later ones with one norm, and one head of keys."""
    norms = {} if metadata.has("attn_norm_2.weight") else {"num_ln_in_parallel_attn": 1}
    size = _as_tensors("ffn_hidden_size")(metadata, config)
    return {**norms, **size, "new_decoder_architecture": True}


_GLM4_NORMS: Names = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
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
_HUNYUAN: Names = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
_PHI2 = (
    BESIDE_BLOCKS | ATTENTION | QKV | UNGATED | {"output_norm": "model.final_layernorm", "attn_norm": "input_layernorm"}
)
_BIAS = {"use_bias": "attn_output.bias"}
_BIASES = {"attention_bias": "attn_q.bias"}

DENSE: Mapping[str, dict[str, Dialect]] = {
    "llama": {"": Dialect("llama", rows(LLAMA, paired=True))},
    "arcee": {"": Dialect("arcee", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED, paired=True))},
    "chatglm": {"": Dialect("glm", rows(BESIDE_BLOCKS | ATTENTION | QKV | NORMS_BEFORE | GATED_FUSED))},
    "cohere2": {"": Dialect("cohere2", rows(LLAMA), LOGIT_SCALE | WINDOW)},
    "command-r": {
        "": Dialect(
            "cohere", rows(LLAMA | HEAD_NORMS), LOGIT_SCALE, present=_BIASES | {"use_qk_norm": "attn_q_norm.weight"}
        )
    },
    "ernie4_5": {"": Dialect("ernie4_5", rows(LLAMA), present=_BIAS)},
    "exaone4": {
        "": Dialect(
            "exaone4", rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_BEHIND | GATED), WINDOW, more=windowed
        )
    },
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
    "glm4": {"": Dialect("glm4", rows(BESIDE_BLOCKS | ATTENTION | _GLM4_NORMS | GATED_FUSED))},
    "gpt2": {
        "": Dialect(
            "gpt2",
            rows(_GPT2),
            {"layer_norm_epsilon": Key("attention.layer_norm_epsilon", float)},
            present={},
            more=_as_tensors("n_inner"),
            blocks="transformer.h",
        )
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
    "granite": {"": Dialect("granite", rows(LLAMA, paired=True), GRANITE)},
    "hunyuan-dense": {"": Dialect("hunyuan_v1_dense", rows(LLAMA | _HUNYUAN))},
    "mistral3": {
        "attention.temperature_scale": Dialect(
            "ministral3",
            rows(LLAMA, paired=True),
            {"llama_4_scaling_beta": Key("attention.temperature_scale", float, ...)},
            more=_ministral3,
        ),
        "": Dialect("mistral", rows(LLAMA, paired=True), fixed={"sliding_window": None}),
    },
    "nemotron": {
        "": Dialect(
            "nemotron",
            rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED, shifted=("attn_norm", "ffn_norm", "output_norm")),
        )
    },
    "olmo": {"": Dialect("olmo", rows(LLAMA, paired=True), {"clip_qkv": Key("attention.clamp_kqv", float)})},
    "olmo2": {
        "attention.sliding_window": Dialect(
            "olmo3",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_BEHIND | GATED),
            WINDOW,
            more=windowed,
        ),
        "": Dialect("olmo2", rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_BEHIND | GATED)),
    },
    "phi2": {"": Dialect("phi", rows(_PHI2), present={}, more=_as_tensors("intermediate_size"))},
    "phi3": {
        "": Dialect("phi3", rows(BESIDE_BLOCKS | ATTENTION | QKV | NORMS_BEFORE | GATED_FUSED), WINDOW, more=_phi3)
    },
    "qwen2": {"": Dialect("qwen2", rows(LLAMA))},
    "qwen3": {"": Dialect("qwen3", rows(LLAMA | HEAD_NORMS))},
    "seed_oss": {
        "": Dialect(
            "seed_oss",
            rows(
                BESIDE_BLOCKS
                | ATTENTION
                | GATED
                | {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
            ),
            present=_BIASES | {"attention_out_bias": "attn_output.bias", "mlp_bias": "ffn_up.bias"},
        )
    },
    "smollm3": {"": Dialect("smollm3", rows(LLAMA, paired=True), fixed={"no_rope_layer_interval": 4})},
    "stablelm": {
        "": Dialect(
            "stablelm",
            rows(LLAMA | HEAD_NORMS),
            {"use_parallel_residual": Key("use_parallel_residual", bool, True)},
            present={"use_qkv_bias": "attn_q.bias", "qk_layernorm": "attn_q_norm.weight"},
        )
    },
    "starcoder": {
        "": Dialect(
            "gpt_bigcode",
            rows(_GPT2),
            {"layer_norm_epsilon": Key("attention.layer_norm_epsilon", float)},
            present={},
            more=_bigcode,
            blocks="transformer.h",
        )
    },
    "jais2": {"": Dialect("jais2", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED))},
    "starcoder2": {"": Dialect("starcoder2", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED), present=_BIAS)},
}
"""Architecture -> sign -> model type: where an architecture is several, a key or tensor tells them apart."""
