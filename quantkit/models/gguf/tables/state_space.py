"""GGUF's names and keys of architectures with layers of Mamba or Mamba-2; as `dense.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.models.config import shown
from quantkit.models.gguf.dialect import Dialect, Key, Names, rows
from quantkit.models.gguf.metadata import Metadata
from quantkit.models.gguf.tables.names import (
    ATTENTION,
    BESIDE_BLOCKS,
    BIASES,
    COUNTS,
    EXPERT_SIZE,
    GRANITE,
    NORMS_BEFORE,
    SHARED_MLP,
    SIGMOID,
    USED,
    attention,
    beside_experts,
    experts,
    gated,
)
from quantkit.models.stored import Named

_BACKBONE: Names = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    "attn_norm": "norm",
}
_TWO_NORMS: Names = BESIDE_BLOCKS | {
    "output_norm": "model.final_layernorm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "pre_ff_layernorm",
}
_NOT_IN_MAMBA = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "rope_theta")

# Mamba.


def _mamba(module: str) -> Names:
    return {
        "ssm_in": (f"{module}.in_proj.inputs", f"{module}.in_proj.gate"),
        "ssm_x": (f"{module}.x_proj.steps", f"{module}.x_proj.bc"),
        "ssm_dt": f"{module}.dt_proj",
        "ssm_out": f"{module}.out_proj",
    }


def _convolution(module: str) -> tuple[Named, ...]:
    """What both kinds of layers have beside their products."""
    return (
        Named("ssm_a", f"{module}.A_log", decoder="log_of_minus"),
        Named("ssm_d", f"{module}.D"),
        Named("ssm_conv1d.weight", f"{module}.conv1d.weight"),
        Named("ssm_conv1d.bias", f"{module}.conv1d.bias"),
    )


_JAMBA: Names = (
    _TWO_NORMS
    | ATTENTION
    | gated("feed_forward")
    | _mamba("mamba")
    | {f"ssm_{name}_norm": f"mamba.{name}_layernorm" for name in ("dt", "b", "c")}
    | {"ffn_gate_inp": "feed_forward.router", **experts("feed_forward")}
)
_MAMBA_FIELDS = {
    "mamba_d_state": Key("ssm.state_size", int, ...),
    "mamba_d_conv": Key("ssm.conv_kernel", int, ...),
    "mamba_dt_rank": Key("ssm.time_step_rank", int, ...),
}
_BIASES_OF_MAMBA = {"mamba_conv_bias": "ssm_conv1d.bias", "mamba_proj_bias": "ssm_in.bias"}


def _mamba_fields(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(_NOT_IN_MAMBA, ...) | {"intermediate_size": metadata.require("ssm.inner_size", int)}


def _jamba(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = range(config["num_hidden_layers"])
    attends = metadata.flags("attention.head_count_kv", len(layers)) or [False] * len(layers)
    sparse = [f"blk.{layer}.ffn_gate_inp.weight" in metadata.tensors for layer in layers]
    return {
        "rope_theta": ...,
        "mamba_expand": metadata.require("ssm.inner_size", int) // max(1, config["hidden_size"]),
        **_recurring("attn", attends),
        **_recurring("expert", sparse),
    }


def _recurring(kind: str, flags: Sequence[bool]) -> dict[str, int]:
    """Every how many layers one is of a kind, and which is the first."""
    behind = len(flags)
    places = [layer for layer, flag in enumerate(flags) if flag] or [behind]
    period = places[1] - places[0] if places[1:] else behind + 1
    if places[0] >= period or any(flag != (layer % period == places[0]) for layer, flag in enumerate(flags)):
        raise UnsupportedError(f"its layers of the kind {kind} are {shown(places)}, not every so many of them")
    return {f"{kind}_layer_period": period, f"{kind}_layer_offset": places[0]}


# Mamba-2.


def _mamba2(module: str) -> Names:
    parts = tuple(f"{module}.in_proj.{part}" for part in ("gate", "inputs", "steps"))
    return {"ssm_in": parts, "ssm_out": f"{module}.out_proj"}


def _beside_mamba2(module: str) -> tuple[Named, ...]:
    return (
        *_convolution(module),
        Named("ssm_dt.bias", f"{module}.dt_bias"),
        Named("ssm_norm.weight", f"{module}.norm.weight"),
    )


_MAMBA2_FIELDS = {
    "mamba_n_heads": Key("ssm.time_step_rank", int, ...),
    "mamba_n_groups": Key("ssm.group_count", int, 1),
    "mamba_d_state": Key("ssm.state_size", int, ...),
    "mamba_d_conv": Key("ssm.conv_kernel", int, ...),
}


def _heads(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Channels of a head, and of all of them."""
    inner = metadata.require("ssm.inner_size", int)
    head = inner // max(1, config["mamba_n_heads"])
    return {"mamba_expand": inner // max(1, config["hidden_size"]), "mamba_d_head": head}


def _mamba2_fields(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(_NOT_IN_MAMBA, ...) | _heads(metadata, config)


_WITH_ATTENTION: Names = _TWO_NORMS | ATTENTION | gated("feed_forward") | _mamba2("mamba")
_GRANITE: Names = (
    BESIDE_BLOCKS
    | ATTENTION
    | NORMS_BEFORE
    | SHARED_MLP
    | gated("shared_mlp")  # without experts, the MLP that all tokens go to has the usual names
    | {"ffn_gate_inp": "block_sparse_moe.router.layer", **experts("block_sparse_moe")}
)
_NEMOTRON: Names = (
    _BACKBONE
    | attention("mixer")
    | _mamba2("mixer")
    | {
        "ffn_up": "mixer.up_proj",
        "ffn_down": "mixer.down_proj",
        "ffn_gate_inp": "mixer.gate",
        "ffn_latent_down": "mixer.fc1_latent_proj",
        "ffn_latent_up": "mixer.fc2_latent_proj",
        **experts("mixer"),
        **beside_experts("mixer.shared_experts"),
    }
)


def _granite(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    attends = metadata.flags("attention.head_count_kv", config["num_hidden_layers"]) or []
    turns = metadata.get("rope.scaling.finetuned", bool, True)
    return {
        **_heads(metadata, config),
        "intermediate_size": config.get("intermediate_size") or config.get("shared_intermediate_size"),
        "shared_intermediate_size": config.get("shared_intermediate_size") or config.get("intermediate_size"),
        "layer_types": ["attention" if flag else "mamba" for flag in attends],
        "position_embedding_type": "rope" if turns else "nope",
    }


def _bamba(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    attends = metadata.flags("attention.head_count_kv", config["num_hidden_layers"]) or []
    layers = [layer for layer, flag in enumerate(attends) if flag]
    return {**_heads(metadata, config), "attn_layer_indices": layers}


def _falcon_h1(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Its factors are multiplied into weights; a norm stands behind the gate."""
    inner = metadata.require("ssm.inner_size", int)
    return {**_heads(metadata, config), "mamba_expand": ..., "mamba_d_ssm": inner, "mamba_norm_before_gate": False}


def _nemotron(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without heads of keys and without columns of an MLP is one of Mamba-2."""
    layers = range(config["num_hidden_layers"])
    attends, feeds = (
        metadata.flags(key, len(layers)) or [False] * len(layers)
        for key in ("attention.head_count_kv", "feed_forward_length")
    )
    sparse = [f"blk.{layer}.ffn_gate_inp.weight" in metadata.tensors for layer in layers]
    kinds = (("moe" if sparse[n] else "mlp") if feeds[n] else "attention" if attends[n] else "mamba" for n in layers)
    return {
        **_heads(metadata, config),
        "mamba_expand": ...,
        "head_dim": metadata.require("attention.key_length", int),
        "num_key_value_heads": metadata.get("attention.head_count_kv", int) or config["num_attention_heads"],
        "rms_norm_eps": config.get("rms_norm_eps", config.get("layer_norm_eps", ...)),
        "layer_norm_eps": ...,
        "layers_block_type": list(kinds),
        "rope_theta": ...,
    }


_NEMOTRON_DENSE = Dialect(
    "nemotron_h",
    (
        *_beside_mamba2("mixer"),
        *rows(_NEMOTRON, paired=True),
        Named("exp_probs_b.bias", "mixer.gate.e_score_correction_bias"),
    ),
    _MAMBA2_FIELDS,
    present={**_BIASES_OF_MAMBA, "mlp_bias": "ffn_up.bias"},
    more=_nemotron,
    blocks="backbone.layers",
    own_heads=True,
    accepted={**SIGMOID, "expert_shared_count": (1,)},
)

STATE_SPACE: Mapping[str, Mapping[str, Dialect]] = {
    "falcon-h1": {
        "": Dialect(
            "falcon_h1",
            (
                *rows(_WITH_ATTENTION),
                *_beside_mamba2("mamba"),
                Named("ffn_norm", "pre_ff_layernorm.weight"),
            ),
            _MAMBA2_FIELDS,
            present={
                **BIASES,
                **_BIASES_OF_MAMBA,
                "mlp_bias": "ffn_up.bias",
                "mamba_rms_norm": "ssm_norm.weight",
            },
            more=_falcon_h1,
        )
    },
    "granitehybrid": {
        "attention.scale": Dialect(
            "granitemoehybrid",
            _beside_mamba2("mamba") + rows(_GRANITE | _mamba2("mamba"), paired=True),
            {
                **GRANITE,
                **_MAMBA2_FIELDS,
                "num_local_experts": Key("expert_count", int, 0),
                "num_experts_per_tok": Key("expert_used_count", int, 0),
                "shared_intermediate_size": Key("expert_shared_feed_forward_length", int),
            },
            present=BIASES | _BIASES_OF_MAMBA,
            more=_granite,
        ),
        "": Dialect(
            "bamba",
            _beside_mamba2("mamba") + rows(_WITH_ATTENTION, paired=True),
            _MAMBA2_FIELDS,
            present={**BIASES, **_BIASES_OF_MAMBA, "mlp_bias": "ffn_up.bias"},
            more=_bamba,
        ),
    },
    "jamba": {
        "": Dialect(
            "jamba",
            _convolution("mamba") + rows(_JAMBA),
            COUNTS | _MAMBA_FIELDS,
            present=_BIASES_OF_MAMBA,
            more=_jamba,
        )
    },
    "mamba": {
        sign: Dialect(
            model_type,
            _convolution("mixer") + rows(_BACKBONE | _mamba("mixer")),
            _MAMBA_FIELDS,
            present=_BIASES_OF_MAMBA,
            more=_mamba_fields,
            blocks="backbone.layers",
            own_heads=True,
        )
        for sign, model_type in {"ssm.dt_b_c_rms": "falcon_mamba", "": "mamba"}.items()
    },
    "mamba2": {
        "": Dialect(
            "mamba2",
            _beside_mamba2("mixer") + rows(_BACKBONE | _mamba2("mixer")),
            _MAMBA2_FIELDS,
            present=_BIASES_OF_MAMBA,
            more=_mamba2_fields,
            blocks="backbone.layers",
            own_heads=True,
        )
    },
    "nemotron_h": {"": _NEMOTRON_DENSE},
    "nemotron_h_moe": {
        "": _NEMOTRON_DENSE._replace(
            fields={
                **_MAMBA2_FIELDS,
                **USED,
                **EXPERT_SIZE,
                "n_routed_experts": Key("expert_count", int, ...),
                "moe_shared_expert_intermediate_size": Key("expert_shared_feed_forward_length", int, ...),
                "moe_latent_size": Key("moe_latent_size", int),
                "n_group": Key("expert_group_count", int, 1),
                "topk_group": Key("expert_group_used_count", int, 1),
                "norm_topk_prob": Key("expert_weights_norm", bool, False),
                "routed_scaling_factor": Key("expert_weights_scale", float, 1.0),
            }
        )
    },
}
"""As `dense.DENSE`."""
