"""GGUF's names and keys of architectures with short convolutions or gated delta rules; as `dense.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quantkit.models.decoder.delta_net import DeltaNetConfig
from quantkit.models.gguf.dialect import Dialect, Key, Names, Row, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    COUNTS,
    EXPERT_SIZE,
    GATED,
    HEAD_NORMS,
    ROUTER,
    SHARED_GATE,
    SHIFTED,
    SIGMOID,
    beside_experts,
    experts,
    gated,
)
from quantkit.models.stored import Fused, Named

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
    **gated("feed_forward"),
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
_DELTA_EXPERTS: Names = ROUTER | beside_experts("mlp.shared_expert") | experts("mlp")
_DELTA_EXPERT_FIELDS = {
    **COUNTS,
    **EXPERT_SIZE,
    "shared_expert_intermediate_size": Key("expert_shared_feed_forward_length", int, ...),
}


def _delta_rows(names: Names) -> tuple[Row, ...]:
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


HYBRID: Mapping[str, Mapping[str, Dialect]] = {
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
                **COUNTS,
                **EXPERT_SIZE,
                "num_dense_layers": Key("leading_dense_block_count", int, 0),
            },
            present={"conv_bias": "shortconv.conv.bias", "use_expert_bias": "exp_probs_b.bias"},
            more=_short,
            accepted=SIGMOID,
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
