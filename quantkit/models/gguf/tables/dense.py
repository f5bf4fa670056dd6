"""GGUF's names and keys of dense architectures that are built like Llama; `gpt.py` has the others.

Written down from the files that llama.cpp's converter makes (`convert_hf_to_gguf.py`), which tests convert anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.gguf.config import layer_types
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    BIAS,
    BIASES,
    GATED,
    GATED_FUSED,
    GRANITE,
    HEAD_NORMS,
    LATE_HEAD_NORMS,
    LLAMA,
    LOCAL_COUNTS,
    LOGIT_SCALE,
    NORMS_BEFORE,
    NORMS_BEFORE_BOTH,
    NORMS_BEHIND,
    SINKS,
    UNGATED,
    WINDOW,
    as_tensors,
    attention,
    experts,
    longrope,
    windowed,
)


def _ministral3(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Its yarn grows with a factor for long texts, and is not scaled: the key holds `mscale_all_dim` itself."""
    scale = metadata.get("rope.scaling.yarn_log_multiplier", float, 1.0)
    beta = config["llama_4_scaling_beta"]
    scaling = {**(config["rope_scaling"] or {}), "mscale": scale, "mscale_all_dim": scale, "llama_4_scaling_beta": beta}
    return {"rope_scaling": scaling, "llama_4_scaling_beta": ...}


def _granite_swa(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every fourth layer sees all tokens, and the heads of some layers may stay as they are."""
    layers = config["num_hidden_layers"]
    default = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(layers)]
    turns = metadata.flags("attention.rope_pattern", layers) or [True] * layers
    thetas = [config["rope_theta"] if flag else 0 for flag in turns]
    return {
        "layer_types": layer_types(metadata, layers, default),
        "layer_rope_theta": None if all(turns) else thetas,
    }


def _minicpm(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Old files have no factors, but those that they all had."""
    factors = {
        "attention_multiplier": config["head_dim"] ** -0.5 if config["head_dim"] > 0 else 1.0,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / config["num_hidden_layers"] ** 0.5,
        "logits_scaling": config["hidden_size"] / 256,
    }
    return {name: config.get(name, factor) for name, factor in factors.items()}


_GLM4_NORMS: Names = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_EXAONE: Names = {
    "token_embd": "transformer.wte",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    **attention("attn.attention"),
    **GATED,
}
_SUB_NORMS: Names = {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"}
_GRANITE_EXPERTS: Names = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    **experts("block_sparse_moe"),
    "ffn_up_shexp": ("shared_mlp.gate_proj", "shared_mlp.up_proj"),
    "ffn_down_shexp": "shared_mlp.down_proj",
}
_XIELU = {f"mlp.act_fn.{name}": f"xielu.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps")}

DENSE: Mapping[str, dict[str, Dialect]] = {
    **{name: {"": Dialect("llama", rows(LLAMA, paired=True))} for name in ("llama", "internlm2", "xverse")},
    "apertus": {
        "": Dialect(
            "apertus",
            rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_BEFORE | UNGATED),
            present=BIASES,
            stated=_XIELU,
        )
    },
    "arcee": {"": Dialect("arcee", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | UNGATED, paired=True))},
    "bitnet": {"": Dialect("bitnet", rows(LLAMA | _SUB_NORMS), present=BIASES, fixed={"hidden_act": "silu"})},
    "chatglm": {"": Dialect("glm", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | GATED_FUSED))},
    "cohere2": {"": Dialect("cohere2", rows(LLAMA), LOGIT_SCALE | WINDOW)},
    "command-r": {
        "": Dialect(
            "cohere", rows(LLAMA | HEAD_NORMS), LOGIT_SCALE, present=BIASES | {"use_qk_norm": "attn_q_norm.weight"}
        )
    },
    "ernie4_5": {"": Dialect("ernie4_5", rows(LLAMA), present=BIAS)},
    "exaone": {"": Dialect("exaone", rows(_EXAONE), blocks="transformer.h")},
    "exaone4": {
        "": Dialect(
            "exaone4", rows(BESIDE_BLOCKS | ATTENTION | HEAD_NORMS | NORMS_BEHIND | GATED), WINDOW, more=windowed
        )
    },
    "glm4": {"": Dialect("glm4", rows(BESIDE_BLOCKS | ATTENTION | _GLM4_NORMS | GATED_FUSED))},
    "granite": {"": Dialect("granite", rows(LLAMA, paired=True), GRANITE)},
    "granite_swa": {
        "expert_count": Dialect(
            "granitemoe_swa",
            rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | _GRANITE_EXPERTS, paired=True) + SINKS,
            {
                **GRANITE,
                **WINDOW,
                **LOCAL_COUNTS,
                "shared_intermediate_size": Key("expert_shared_feed_forward_length", int, 0),
            },
            present=BIASES,
            more=_granite_swa,
        ),
        "": Dialect("granite_swa", rows(LLAMA, paired=True) + SINKS, GRANITE | WINDOW, more=_granite_swa),
    },
    "hunyuan-dense": {"": Dialect("hunyuan_v1_dense", rows(LLAMA | LATE_HEAD_NORMS))},
    "minicpm": {"": Dialect("granite", rows(LLAMA, paired=True), GRANITE, more=_minicpm)},
    "mistral3": {
        "attention.temperature_scale": Dialect(
            "ministral3",
            rows(LLAMA, paired=True),
            {"llama_4_scaling_beta": Key("attention.temperature_scale", float, ...)},
            more=_ministral3,
        ),
        "": Dialect("mistral", rows(LLAMA, paired=True), fixed={"sliding_window": None}),
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
    "phi3": {"": Dialect("phi3", rows(BESIDE_BLOCKS | ATTENTION | NORMS_BEFORE | GATED_FUSED), WINDOW, more=longrope)},
    "qwen": {"": Dialect("qwen2", rows(LLAMA), more=as_tensors("intermediate_size"))},
    "qwen2": {"": Dialect("qwen2", rows(LLAMA))},
    "qwen2vl": {"": Dialect("qwen2", rows(LLAMA))},
    "qwen3": {"": Dialect("qwen3", rows(LLAMA | HEAD_NORMS))},
    "qwen3vl": {"": Dialect("qwen3", rows(LLAMA | HEAD_NORMS))},
    "seed_oss": {
        "": Dialect(
            "seed_oss",
            rows(BESIDE_BLOCKS | ATTENTION | GATED | NORMS_BEFORE_BOTH),
            present=BIASES | {"attention_out_bias": "attn_output.bias", "mlp_bias": "ffn_up.bias"},
        )
    },
    "smollm3": {"": Dialect("smollm3", rows(LLAMA, paired=True), fixed={"no_rope_layer_interval": 4})},
}
"""Architecture -> sign -> model type: where an architecture is several, a key or tensor tells them apart."""
