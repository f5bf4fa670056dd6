"""BLOOM and MPT: no positions but scores that fall with distance, those of each head at a rate of its own (ALiBi).

They differ in flags and in what they store. BLOOM has biases, and a norm behind its embedding; its layers may be added
to what norms give. MPT may limit queries, keys and values.

Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2022.
BigScience, "BLOOM", 2022. MosaicML, "MPT-7B", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, is_positive, shown
from quantkit.models.decoder import MLP, Attention, embed, head
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused

_STEEPEST = 8
"""Slopes of n heads are 2 to the power of -8/n, -16/n, ... -8."""


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that both have; their MLPs are four times as wide as the hidden size, of a fixed activation."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"hidden_act", "n_inner", "num_key_value_heads", "learned_pos_emb", "rope_theta"}
    )

    intermediate_size: int = 0
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class BloomConfig(Config):
    """`config.json` of model type `bloom`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "n_embed": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "seq_length": "max_position_embeddings",
        }
    )

    apply_residual_connection_post_layernorm: bool = False


@dataclass(frozen=True, kw_only=True)
class MptConfig(Config):
    """`config.json` of model type `mpt`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "d_model": "hidden_size",
            "max_seq_len": "max_position_embeddings",
            "n_heads": "num_attention_heads",
            "n_layers": "num_hidden_layers",
        }
    )

    expansion_ratio: int = 4
    norm_type: str = "low_precision_layernorm"
    attn_config: Mapping[str, Any] | None = None

    def number(self, name: str) -> float | None:
        """Return a number of `attn_config`, None where it has none."""
        value = (self.attn_config or {}).get(name)
        if value is not None and not is_positive(value):
            raise CheckpointError(f"config.json: attn_config.{name} is {shown(value)}, not a positive number")
        return value

    def check(self) -> None:
        """Raise `UnsupportedError` where it asks for what transformers does not compute either."""
        others = {"expansion_ratio": self.expansion_ratio, "norm_type": self.norm_type}
        attention = {f"attn_config.{name}": value for name, value in (self.attn_config or {}).items()}
        for name, value in (others | attention).items():
            if name in _ONLY and value not in _ONLY[name]:
                raise UnsupportedError(
                    f"config.json: {name} is {shown(value)}; supported are {' and '.join(map(str, _ONLY[name]))}"
                )


_ONLY: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "expansion_ratio": (4,),
        "norm_type": ("low_precision_layernorm", "layernorm"),
        "attn_config.alibi": (True,),
        "attn_config.alibi_bias_max": (_STEEPEST,),
        "attn_config.attn_type": ("multihead_attention",),
        "attn_config.prefix_lm": (False,),
        "attn_config.qk_ln": (False,),
    }
)
"""Fields of MPT with a single value, or names for the same."""

BLOOM_STORED = (
    Fused(
        "self_attention.query_key_value",
        ("self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj"),
        groups="num_attention_heads",
    ),
    Fused("self_attention.dense", ("self_attention.o_proj",)),
    Fused("mlp.dense_h_to_4h", ("mlp.up_proj",)),
    Fused("mlp.dense_4h_to_h", ("mlp.down_proj",)),
)
MPT_STORED = (
    Fused("attn.Wqkv", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    Fused("attn.out_proj", ("attn.o_proj",)),
)


def bloom(config: BloomConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=config.layer_norm_epsilon, bias=True)
    attention = Attention(
        ops, config, config.head_size**-0.5, qkv_bias=True, output_bias=True, slopes=slopes(config.num_attention_heads)
    )
    mlp = MLP(ops, 4 * config.hidden_size, "gelu_tanh", bias=True)
    embedding = "transformer.word_embeddings"
    h = norm(embed(ops, config, embedding), f"{embedding}_layernorm")
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        residual = x if config.apply_residual_connection_post_layernorm else h
        h = ops.add(residual, attention(x, f"{name}.self_attention", rotation=None))
        x = norm(h, f"{name}.post_attention_layernorm")
        residual = x if config.apply_residual_connection_post_layernorm else h
        h = ops.add(residual, mlp(x, f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "transformer.ln_f"), embedding)


def mpt(config: MptConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    config.check()
    norm = partial(ops.layer_norm, eps=config.layer_norm_epsilon)
    scale = config.number("softmax_scale") or config.head_size**-0.5
    clip = config.number("clip_qkv")
    attention = Attention(ops, config, scale, clip=clip, slopes=slopes(config.num_attention_heads))
    mlp = MLP(ops, 4 * config.hidden_size, "gelu")
    h = embed(ops, config, "transformer.wte")
    for layer in range(config.num_hidden_layers):
        name = f"transformer.blocks.{layer}"
        h = ops.add(h, attention(norm(h, f"{name}.norm_1"), f"{name}.attn", rotation=None))
        h = ops.add(h, mlp(norm(h, f"{name}.norm_2"), f"{name}.ffn"))
    head(ops, config, norm(ops.select(h), "transformer.norm_f"), "transformer.wte")


def slopes(heads: int) -> tuple[float, ...]:
    """Return by how much the scores of each head fall from position to position.

    Where the heads are no power of two, the slopes are those of every second of so many heads, then of those between.
    """
    power = 2 ** math.ceil(math.log2(heads))
    steps = [2 ** (-_STEEPEST * number / power) for number in range(1, power + 1)]
    return tuple(steps if power == heads else [*steps[1::2], *steps[::2]][:heads])
