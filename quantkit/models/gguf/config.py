"""The `config.json` that the metadata of a GGUF file amounts to.

Fields that all architectures have, rotary parameters, and what a `Dialect` says of its own. A key that changes what a
model computes, and that nobody asked for, refuses the file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, UnsupportedError, notice
from quantkit.models.config import DecoderConfig, shown
from quantkit.models.gguf.dialect import Dialect, Key
from quantkit.models.gguf.metadata import Metadata, shortest

logger = logging.getLogger(__name__)

FIELDS: Mapping[str, Key] = MappingProxyType(
    {
        "hidden_size": Key("embedding_length", int, ...),
        "intermediate_size": Key("feed_forward_length", int),
        "num_hidden_layers": Key("block_count", int, ...),
        "num_attention_heads": Key("attention.head_count", int, ...),
        "max_position_embeddings": Key("context_length", int, ...),
        "rms_norm_eps": Key("attention.layer_norm_rms_epsilon", float),
        "layer_norm_eps": Key("attention.layer_norm_epsilon", float),
        "rope_theta": Key("rope.freq_base", float, 10000.0),
    }
)

EMBEDDING, HEAD = "token_embd.weight", "output.weight"

ROPE_FREQS, LONG, SHORT = (f"{name}.weight" for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"))


def _each(keys: str, *neutral: Any) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(keys.split(), neutral)


COMPUTING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    _each("expert_count expert_shared_count expert_weights_scale expert_group_count expert_group_used_count", 0)
    | _each("leading_dense_block_count interleave_moe_layer_step", 0)
    | _each("attention.kv_lora_rank attention.q_lora_rank attention.sliding_window attention.shared_kv_layers", 0)
    | _each("attn_logit_softcapping final_logit_softcapping attention.clamp_kqv attention.max_alibi_bias", 0)
    | _each("attention.temperature_scale embedding_length_per_layer_input ssm.state_size shortconv.l_cache", 0)
    | _each("logit_scale embedding_scale residual_scale attention.scale attention.output_scale", 0, 1)
    | _each("use_parallel_residual expert_weights_norm", False)
    | _each("attention.causal", True)
    | _each("expert_gating_func")
)
"""Key -> the values with which it changes nothing."""


def config_of(metadata: Metadata, dialect: Dialect, family: type[DecoderConfig]) -> dict[str, Any]:
    """Return the config.

    Raises
    ------
    CheckpointError
        A key is missing or ill-typed.
    UnsupportedError
        A key asks for what quantkit does not compute.
    """
    config: dict[str, Any] = {"model_type": dialect.model_type}
    for name, key in {**FIELDS, **dialect.fields}.items():
        if (value := _value(metadata, key)) is not None:
            config[name] = value
    heads = config["num_attention_heads"]
    layers = config["num_hidden_layers"] = config["num_hidden_layers"] - metadata.get("nextn_predict_layers", int, 0)
    if not 0 < layers <= len(metadata.tensors):  # before anything is made for each of them
        raise CheckpointError(f"its metadata gives {layers} layers, and the file holds {len(metadata.tensors)} tensors")
    if not dialect.own_heads:
        kv_heads = config["num_key_value_heads"] = metadata.get("attention.head_count_kv", int, heads)
        if min(heads, kv_heads) < 1:
            raise CheckpointError(f"its metadata gives {heads} heads and {kv_heads} key-value heads")
    config["vocab_size"] = metadata.tensor(EMBEDDING).shape[0]
    config["tie_word_embeddings"] = HEAD not in metadata.tensors
    config |= {field: _is_there(metadata, name) for field, name in dialect.present.items()}
    if not dialect.own_heads:
        config |= _heads(metadata, config, partial=family.default_rotary_part is not None)
    if not dialect.own_rope:
        config["rope_scaling"] = _rope_scaling(metadata, config)
    config |= dialect.fixed
    if dialect.more is not None:
        config |= dialect.more(metadata, config)
    _check_unasked(metadata, {**COMPUTING, **dialect.accepted})
    return {field: value for field, value in config.items() if value is not ...}


def layer_types(metadata: Metadata, layers: int, default: list[str]) -> list[str]:
    """Return which layers see a window, as the file says, or by `default`."""
    flags = metadata.flags("attention.sliding_window_pattern", layers)
    return default if flags is None else ["sliding_attention" if flag else "full_attention" for flag in flags]


def _is_there(metadata: Metadata, name: str) -> bool:
    """Whether a file has a tensor, that of queries perhaps in one with keys and values."""
    return metadata.has(name) or metadata.has(name.replace("attn_q.", "attn_qkv."))


def _value(metadata: Metadata, key: Key) -> Any:
    if key.kind is list:
        return metadata.each(key.name)
    if key.default is ...:
        return metadata.require(key.name, key.kind)
    return metadata.get(key.name, key.kind, key.default)


def _heads(metadata: Metadata, config: Mapping[str, Any], *, partial: bool) -> dict[str, Any]:
    """Size of a head, and how many of its channels turn."""
    size = metadata.get("attention.key_length", int, config["hidden_size"] // config["num_attention_heads"])
    if metadata.get("attention.value_length", int, size) != size:
        raise UnsupportedError(f"its attention.value_length differs from the head size {size}")
    turning = metadata.get("rope.dimension_count", int, size)
    if not partial:
        if turning != size:
            raise UnsupportedError(f"its rope.dimension_count differs from the head size {size}")
        return {"head_dim": size}
    if not 0 < turning <= size:
        raise CheckpointError(f"its rope.dimension_count is {turning}, for heads of {size} channels")
    part = turning / size
    # The share is multiplied by the size again, and rounded down.
    return {"head_dim": size, "partial_rotary_factor": part if int(size * part) == turning else math.nextafter(part, 1)}


def _rope_scaling(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = metadata.get("rope.scaling.type", str, "none")
    factor = metadata.get("rope.scaling.factor", float, metadata.get("rope.scale_linear", float, 1.0))
    original = metadata.get("rope.scaling.original_context_length", int)
    long, short = metadata.numbers(LONG), metadata.numbers(SHORT)
    if long is not None and short is not None:
        return _longrope(metadata, config, long, short, original)
    if (factors := metadata.numbers(ROPE_FREQS)) is not None:
        return _divided(config, factors)
    if kind == "yarn":
        return _yarn(metadata, factor, original)
    if kind not in ("none", "linear"):
        raise UnsupportedError(f"has rope scaling {shown(kind)}; read are none, linear, yarn, longrope and llama3")
    return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None


def _yarn(metadata: Metadata, factor: float | None, original: int | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": metadata.get("rope.scaling.yarn_beta_fast", float),
        "beta_slow": metadata.get("rope.scaling.yarn_beta_slow", float),
        "attention_factor": metadata.get("rope.scaling.yarn_attn_factor", float),
    }
    if metadata.get("rope.scaling.yarn_ext_factor", float, 1.0) != 1.0:
        raise UnsupportedError("its rope.scaling.yarn_ext_factor is not 1")
    if (multiplier := metadata.get("rope.scaling.yarn_log_multiplier", float)) is not None:
        all_dim = shortest(10 * multiplier)
        parameters |= {"mscale": all_dim, "mscale_all_dim": all_dim}
    return {name: value for name, value in parameters.items() if value is not None}


def _longrope(
    metadata: Metadata, config: Mapping[str, Any], long: list[float], short: list[float], original: int | None
) -> dict[str, Any]:
    attention = metadata.get("rope.scaling.attn_factor", float)
    parameters = {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original or config["max_position_embeddings"],
        "attention_factor": attention,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _divided(config: Mapping[str, Any], factors: list[float]) -> dict[str, Any] | None:
    """Rope scaling by a number for each pair of channels, by which its frequency is divided.

    llama.cpp's converter writes them for Llama 3.x. Of that one's parameters only `factor` varies between the published
    models, and it is the largest of these numbers; others are the factors of a longrope that is the same at any length.
    """
    pairs = config["head_dim"] // 2
    if len(factors) != pairs:
        raise CheckpointError(f"its tensor {ROPE_FREQS!r} has {len(factors)} numbers for {pairs} pairs of channels")
    if all(factor == 1.0 for factor in factors):
        return None
    if np.allclose(factors, llama3_factors(config["rope_theta"], config["head_dim"], max(factors)), rtol=1e-4):
        return LLAMA3 | {"factor": max(factors)}
    longest = config["max_position_embeddings"]
    always = {"attention_factor": 1.0, "original_max_position_embeddings": longest}
    return {"rope_type": "longrope", "long_factor": factors, "short_factor": factors, **always}


LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float = 1.0, high: float = 4.0, original_context: int = 8192
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return by how much Llama 3's rope scaling divides each of the `head_dim / 2` frequencies.

    Frequencies that turn more than `high` times within the original context stay, those that turn less than `low` times
    are divided by `factor`, and between the two the inverse is interpolated (Hugging Face's `rope_type` llama3).
    """
    with np.errstate(all="ignore"):  # a damaged theta gives factors that match nothing
        turns = original_context * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        found: np.ndarray[Any, np.dtype[np.float64]] = 1 / ((1 - smooth) / factor + smooth)
        return found


def _check_unasked(metadata: Metadata, computing: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a file that asks for something that its architecture does not compute here."""
    unasked = metadata.unasked()
    for key, neutral in computing.items():
        if key in unasked and not any(np.all(unasked[key] == value) for value in neutral):
            raise UnsupportedError(
                f"its {metadata.architecture}.{key} is {shown(unasked[key])}, which changes what the model computes; "
                f"quantkit has no such thing for architecture {shown(metadata.architecture)}"
            )
    if others := unasked.keys() - computing.keys():
        notice(logger, f"unknown keys of its metadata are ignored: {', '.join(sorted(others))}", logging.DEBUG)
