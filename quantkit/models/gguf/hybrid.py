"""GGUF's names and keys of architectures with latent attention or recurrent layers; `dense.py` has what all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quantkit.models.decoder.delta_net import DeltaNetConfig
from quantkit.models.gguf.dense import ATTENTION, BESIDE_BLOCKS, GATED, GRANITE, HEAD_NORMS, NORMS_BEFORE, SHIFTED
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.mixtures import (
    EXPERT_BIAS,
    GROUPED,
    SHARED_EXPERTS,
    SHARED_GATE,
    SHARED_MLP,
    SIGMOID,
    experts,
)
from quantkit.models.stored import Fused, Named, Stored

_SIZE = Key("expert_feed_forward_length", int, ...)

# DeepSeek and others: keys and values come from a latent.

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
_LATENT_EXPERTS = SHARED_EXPERTS | {"ffn_gate_inp": "mlp.gate"} | experts("mlp")
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


# LFM2: short convolutions between layers of attention.

_SHORT: Names = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",
    "output_norm": "model.embedding_norm",
    "output": "lm_head",
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    **ATTENTION,
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.in_proj": ("conv.b_proj", "conv.c_proj", "conv.x_proj"),
    "shortconv.out_proj": "conv.out_proj",
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
}
_SHORT_KERNEL = (Named("shortconv.conv.weight", "conv.conv.weight"),)
_SHORT_FIELDS = {"conv_L_cache": Key("shortconv.l_cache", int, ...)}


def _short(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Layers without heads of keys are convolutions."""
    attends = metadata.flags("attention.head_count_kv", config["num_hidden_layers"])
    types = [] if attends is None else ["full_attention" if flag else "conv" for flag in attends]
    return {"layer_types": types, "block_auto_adjust_ff_dim": False}


# Qwen3-Next and Qwen3.5: gated delta rules, and attention with gates.

_DELTA: Names = (
    BESIDE_BLOCKS
    | GATED
    | {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        **HEAD_NORMS,
        "attn_qkv": "linear_attn.in_proj_qkv",
        "attn_gate": "linear_attn.in_proj_z",
        "ssm_alpha": "linear_attn.in_proj_a",
        "ssm_beta": "linear_attn.in_proj_b",
        "ssm_norm": "linear_attn.norm",
        "ssm_out": "linear_attn.out_proj",
    }
)
_GATED = Fused("attn_q", ("self_attn.q_proj.query", "self_attn.q_proj.gate"), groups="num_attention_heads")
_DELTA_OTHERS = (
    Named("ssm_a", "linear_attn.A_log", decoder="log_of_minus"),
    Named("ssm_dt.bias", "linear_attn.dt_bias"),
    Named("ssm_conv1d.weight", "linear_attn.conv1d.weight"),
    Fused("ssm_ba", ("linear_attn.in_proj_b", "linear_attn.in_proj_a"), groups="key_heads"),
)
_DELTA_FIELDS = {
    "linear_conv_kernel_dim": Key("ssm.conv_kernel", int, ...),
    "linear_key_head_dim": Key("ssm.state_size", int, ...),
    "linear_num_key_heads": Key("ssm.group_count", int, ...),
    "linear_num_value_heads": Key("ssm.time_step_rank", int, ...),
    "full_attention_interval": Key("full_attention_interval", int, 4),
}
_DELTA_EXPERTS: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    **experts("mlp"),
}
_DELTA_EXPERT_FIELDS = {
    "num_experts": Key("expert_count", int, ...),
    "num_experts_per_tok": Key("expert_used_count", int, ...),
    "moe_intermediate_size": _SIZE,
    "shared_expert_intermediate_size": Key("expert_shared_feed_forward_length", int, ...),
}


def _delta_rows(names: Names) -> tuple[Stored, ...]:
    """`attn_q` holds queries and gates of each head in turn."""
    return (_GATED, *rows(names, shifted=SHIFTED), *_DELTA_OTHERS)


def _delta(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["linear_num_value_heads"]
    flags = metadata.flags("attention.recurrent_layers", config["num_hidden_layers"])
    types = None if flags is None else ["linear_attention" if flag else "full_attention" for flag in flags]
    size = metadata.require("ssm.inner_size", int) // max(1, heads)
    return {"linear_value_head_dim": size, "layer_types": types}


def _tiled(size: str, before: bool = False) -> Callable[[DeltaNetConfig], tuple[int, ...]]:
    """Order of value heads of `size` rows: Qwen3.5's stand by their places in a group of a key head, not by groups.

    With `before`, queries and keys stand before them.
    """

    def order(config: DeltaNetConfig) -> tuple[int, ...]:
        keys, values = config.linear_num_key_heads or 1, config.linear_num_value_heads or 1
        first = 2 * keys * (config.linear_key_head_dim or 0) if before else 0
        rows = getattr(config, size) if size else 1
        heads = (place * keys + key for key in range(keys) for place in range(values // keys))
        return (*range(first), *(first + head * rows + row for head in heads for row in range(rows)))

    return order


_SIZE_OF_VALUES = "linear_value_head_dim"
_TILED = (
    Named("attn_qkv.weight", "linear_attn.in_proj_qkv.weight", order=_tiled(_SIZE_OF_VALUES, before=True)),
    Named("attn_gate.weight", "linear_attn.in_proj_z.weight", order=_tiled(_SIZE_OF_VALUES)),
    Named("ssm_alpha.weight", "linear_attn.in_proj_a.weight", order=_tiled("")),
    Named("ssm_beta.weight", "linear_attn.in_proj_b.weight", order=_tiled("")),
    Named("ssm_a", "linear_attn.A_log", decoder="log_of_minus", order=_tiled("")),
    Named("ssm_dt.bias", "linear_attn.dt_bias", order=_tiled("")),
    Named("ssm_conv1d.weight", "linear_attn.conv1d.weight", order=_tiled(_SIZE_OF_VALUES, before=True)),
    Named("ssm_out.weight", "linear_attn.out_proj.weight", order=_tiled(_SIZE_OF_VALUES), columns=True),
)


# Mamba-2.

_MAMBA: Names = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    "attn_norm": "norm",
    "ssm_in": ("mixer.in_proj.gate", "mixer.in_proj.inputs", "mixer.in_proj.steps"),
    "ssm_out": "mixer.out_proj",
}


def _mamba_others(module: str) -> tuple[Named, ...]:
    return (
        Named("ssm_a", f"{module}.A_log", decoder="log_of_minus"),
        Named("ssm_d", f"{module}.D"),
        Named("ssm_dt.bias", f"{module}.dt_bias"),
        Named("ssm_conv1d.weight", f"{module}.conv1d.weight"),
        Named("ssm_conv1d.bias", f"{module}.conv1d.bias"),
        Named("ssm_norm.weight", f"{module}.norm.weight"),
    )


_MAMBA_FIELDS = {
    "mamba_n_heads": Key("ssm.time_step_rank", int, ...),
    "mamba_n_groups": Key("ssm.group_count", int, 1),
    "mamba_d_state": Key("ssm.state_size", int, ...),
    "mamba_d_conv": Key("ssm.conv_kernel", int, ...),
}
_MAMBA_BIASES = {"mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}


def _mamba(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    inner = metadata.require("ssm.inner_size", int)
    head = inner // max(1, config["mamba_n_heads"])
    nothing = dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads", "rope_theta"), ...)
    return {**nothing, "mamba_expand": inner // max(1, config["hidden_size"]), "mamba_d_head": head}


_GRANITE: Names = (
    BESIDE_BLOCKS
    | ATTENTION
    | NORMS_BEFORE
    | SHARED_MLP
    | {
        "ssm_in": ("mamba.in_proj.gate", "mamba.in_proj.inputs", "mamba.in_proj.steps"),
        "ssm_out": "mamba.out_proj",
        "ffn_gate_inp": "block_sparse_moe.router.layer",
        **experts("block_sparse_moe"),
    }
)
_GRANITE_ALONE: Names = {
    "ffn_gate": "shared_mlp.gate_proj",
    "ffn_up": "shared_mlp.up_proj",
    "ffn_down": "shared_mlp.down_proj",
}
"""Without experts, the MLP that all tokens go to has the usual names."""


def _granite(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    attends = metadata.flags("attention.head_count_kv", config["num_hidden_layers"]) or []
    turns = metadata.get("rope.scaling.finetuned", bool, True)
    return {
        **_mamba(metadata, config),
        **{name: config[name] for name in ("num_attention_heads", "num_key_value_heads", "rope_theta")},
        "intermediate_size": config.get("intermediate_size") or config.get("shared_intermediate_size"),
        "shared_intermediate_size": config.get("shared_intermediate_size") or config.get("intermediate_size"),
        "layer_types": ["attention" if flag else "mamba" for flag in attends],
        "position_embedding_type": "rope" if turns else "nope",
    }


HYBRID: Mapping[str, Mapping[str, Dialect]] = {
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
    "granitehybrid": {
        "": Dialect(
            "granitemoehybrid",
            _mamba_others("mamba") + rows(_GRANITE | _GRANITE_ALONE, paired=True),
            {
                **GRANITE,
                **_MAMBA_FIELDS,
                "num_local_experts": Key("expert_count", int, 0),
                "num_experts_per_tok": Key("expert_used_count", int, 0),
                "shared_intermediate_size": Key("expert_shared_feed_forward_length", int),
            },
            present={"attention_bias": "attn_q.bias", **_MAMBA_BIASES},
            more=_granite,
        )
    },
    "lfm2": {
        "": Dialect(
            "lfm2",
            rows(_SHORT) + _SHORT_KERNEL,
            _SHORT_FIELDS,
            present={"conv_bias": "shortconv.conv.bias"},
            more=_short,
        )
    },
    "lfm2moe": {
        "": Dialect(
            "lfm2_moe",
            (
                *rows(
                    _SHORT
                    | {"ffn_gate_inp": "feed_forward.gate"}
                    | experts("feed_forward", gate="w1", up="w3", down="w2")
                ),
                *_SHORT_KERNEL,
                Named("exp_probs_b.bias", "feed_forward.expert_bias"),
            ),
            {
                **_SHORT_FIELDS,
                "num_experts": Key("expert_count", int, ...),
                "num_experts_per_tok": Key("expert_used_count", int, ...),
                "moe_intermediate_size": _SIZE,
                "num_dense_layers": Key("leading_dense_block_count", int, 0),
            },
            present={"conv_bias": "shortconv.conv.bias", "use_expert_bias": "exp_probs_b.bias"},
            more=_short,
            accepted=SIGMOID,
        )
    },
    "mamba2": {
        "": Dialect(
            "mamba2",
            _mamba_others("mixer") + rows(_MAMBA),
            _MAMBA_FIELDS,
            present=_MAMBA_BIASES,
            more=_mamba,
            blocks="backbone.layers",
            own_heads=True,
        )
    },
    "qwen35": {
        "": Dialect(
            "qwen3_5_text",
            _TILED + _delta_rows(_DELTA),
            _DELTA_FIELDS,
            present={"attention_bias": "attn_k.bias"},
            more=_delta,
        )
    },
    "qwen35moe": {
        "": Dialect(
            "qwen3_5_moe_text",
            _TILED + _delta_rows(_DELTA | _DELTA_EXPERTS) + SHARED_GATE,
            _DELTA_FIELDS | _DELTA_EXPERT_FIELDS,
            present={"attention_bias": "attn_k.bias"},
            more=_delta,
        )
    },
    "qwen3next": {
        "": Dialect(
            "qwen3_next",
            _delta_rows(_DELTA | _DELTA_EXPERTS) + SHARED_GATE,
            _DELTA_FIELDS | _DELTA_EXPERT_FIELDS,
            present={"attention_bias": "attn_k.bias"},
            more=_delta,
        )
    },
}
"""As `dense.DENSE`."""
