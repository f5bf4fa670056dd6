"""OPT, BioGPT and XGLM: positions are added to embeddings, and their table begins with two rows for padding.

They differ in flags. OPT's norms may stand behind attention and MLP instead of before them, and its embeddings may be
narrower than its layers (OPT-350M has both). BioGPT and XGLM scale their embeddings. XGLM's positions are not learned:
they are sines and cosines.

Zhang et al., "OPT: Open Pre-trained Transformer Language Models", 2022. Luo et al., "BioGPT", 2022. Lin et al.,
"Few-shot Learning with Multilingual Language Models", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation
from quantkit.models.decoder import HEAD, MLP, Attention, embed, head
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused

_OFFSET = 2
"""Rows of the table of positions that belong to padding."""
_EPS = 1e-5
"""Of all norms, whatever a config says."""


@dataclass(frozen=True, kw_only=True)
class OptConfig(DecoderConfig):
    """`config.json` of model type `opt`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "_remove_final_layer_norm": "remove_final_layer_norm",
            "activation_function": "hidden_act",
            "ffn_dim": "intermediate_size",
        }
    )

    hidden_act: str = "relu"
    tie_word_embeddings: bool = True
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True


@dataclass(frozen=True, kw_only=True)
class BioGptConfig(DecoderConfig):
    """`config.json` of model type `biogpt`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"layer_norm_eps"})

    hidden_act: str = "gelu"
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True
    scale_embedding: bool = True


@dataclass(frozen=True, kw_only=True)
class XglmConfig(DecoderConfig):
    """`config.json` of model type `xglm`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "activation_function": "hidden_act",
            "attention_heads": "num_attention_heads",
            "d_model": "hidden_size",
            "ffn_dim": "intermediate_size",
            "num_layers": "num_hidden_layers",
        }
    )

    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True
    scale_embedding: bool = True


OPT_STORED = (
    Fused("self_attn.out_proj", ("self_attn.o_proj",)),
    Fused("fc1", ("mlp.up_proj",)),
    Fused("fc2", ("mlp.down_proj",)),
)
BIOGPT_STORED = (*OPT_STORED, Fused("output_projection", ("lm_head",)))


def opt(config: OptConfig, ops: Recorder) -> None:
    """Record the forward pass."""

    def norm(x: Value, module: str) -> Value:
        affine = config.layer_norm_elementwise_affine
        return ops.layer_norm(x, module if affine else None, _EPS, bias=affine)

    model, size = "model.decoder", config.word_embed_proj_dim or config.hidden_size
    alias = HEAD if config.tie_word_embeddings else ""
    h = ops.embed(f"{model}.embed_tokens", config.vocab_size, size, alias=alias)
    if size != config.hidden_size:
        h = ops.linear(h, f"{model}.project_in", config.hidden_size)
    before, bias = config.do_layer_norm_before, config.enable_bias
    act = activation("activation_function", config.hidden_act)
    h = ops.add(h, _learned_positions(config, ops, model))
    x = ops.select(_layers(config, ops, model, h, norm, act, before=before, bias=bias))
    if before and not config.remove_final_layer_norm:
        x = norm(x, f"{model}.final_layer_norm")
    if size != config.hidden_size:
        x = ops.linear(x, f"{model}.project_out", size)
    head(ops, config, x, f"{model}.embed_tokens")


def biogpt(config: BioGptConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=_EPS, bias=True)
    model, embedding = "biogpt", "biogpt.embed_tokens"
    h = embed(ops, config, embedding)
    if config.scale_embedding:
        h = ops.scale(h, config.hidden_size**0.5)
    h = ops.add(h, _learned_positions(config, ops, model))
    x = _layers(config, ops, model, h, norm, activation("hidden_act", config.hidden_act))
    head(ops, config, norm(ops.select(x), f"{model}.layer_norm"), embedding)


def xglm(config: XglmConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=_EPS, bias=True)
    h = embed(ops, config)
    if config.scale_embedding:
        h = ops.scale(h, config.hidden_size**0.5)
    h = ops.add(h, _sines(config, ops))
    x = _layers(config, ops, "model", h, norm, activation("activation_function", config.hidden_act))
    head(ops, config, norm(ops.select(x), "model.layer_norm"))


def _learned_positions(config: OptConfig | BioGptConfig, ops: Recorder, model: str) -> Value:
    positions, size = config.max_position_embeddings, config.hidden_size
    return ops.embed_positions(f"{model}.embed_positions", positions, size, offset=_OFFSET)


def _sines(config: XglmConfig, ops: Recorder) -> Value:
    """Sines, then cosines, of positions times frequencies that fall from 1 to 1/10000 -> `[T, hidden_size]`."""
    half = config.hidden_size // 2
    if config.hidden_size % 2 or half < 2:
        raise CheckpointError(f"config.json: d_model {config.hidden_size} does not divide into sines and cosines")
    step = np.float32(np.log(10_000) / (half - 1))
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -step)
    both = ops.rotation(tuple(frequencies.tolist()), offset=_OFFSET)
    return ops.append(ops.slice(both, half, 2 * half), ops.slice(both, 0, half))


def _layers(
    config: OptConfig | BioGptConfig | XglmConfig,
    ops: Recorder,
    model: str,
    h: Value,
    norm: Callable[[Value, str], Value],
    act: str,
    *,
    before: bool = True,
    bias: bool = True,
) -> Value:
    """All layers, with norms before attention and MLP or behind them -> `[T, hidden_size]`."""
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    mlp = MLP(ops, config.intermediate_size, act, bias=bias)
    for layer in range(config.num_hidden_layers):
        name = f"{model}.layers.{layer}"
        parts: dict[str, Callable[[Value], Value]] = {
            "self_attn_layer_norm": partial(attention, module=f"{name}.self_attn", rotation=None),
            "final_layer_norm": partial(mlp, module=f"{name}.mlp"),
        }
        for module, part in parts.items():
            x = part(norm(h, f"{name}.{module}") if before else h)
            h = ops.add(h, x) if before else norm(ops.add(h, x), f"{name}.{module}")
    return h
