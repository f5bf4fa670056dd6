"""GPT-2 and those that are built like it: learned positions, LayerNorms, an MLP without a gate.

They differ in flags and in what they store. The matrices of GPT and GPT-2 are transposed (`Conv1D`). The first GPT has
its norms behind attention and MLP. GPT-BigCode (StarCoder) has one KV head for all, or stores queries, keys and values
head by head. In GPT-Neo every other layer sees a window, and scores are not scaled.

Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018, and "Language Models are
Unsupervised Multitask Learners", 2019. Black et al., "GPT-Neo", 2021. Li et al., "StarCoder: may the source be with
you!", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import activation, gpt, shown
from quantkit.models.decoder import MLP, Attention, embed, head
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(gpt.GptConfig):
    """The fields that all of them have."""

    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(Config):
    """`config.json` of model type `gpt2`."""

    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    @property
    def scales(self) -> list[float]:
        """What multiplies the scores of each layer."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        by_layer = self.scale_attn_by_inverse_layer_idx
        return [scale / (layer + 1) if by_layer else scale for layer in range(self.num_hidden_layers)]


@dataclass(frozen=True, kw_only=True)
class GptConfig(Config):
    """`config.json` of model type `openai-gpt`, whose MLPs are four times as wide as the hidden size."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({**Config.SPELLINGS, "afn": "hidden_act"})
    IGNORED: ClassVar[frozenset[str]] = frozenset({"n_inner"})

    max_position_embeddings: int = 512
    hidden_act: str = "gelu"


@dataclass(frozen=True, kw_only=True)
class BigCodeConfig(Config):
    """`config.json` of model type `gpt_bigcode`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"num_key_value_heads"})

    hidden_act: str = "gelu_pytorch_tanh"
    scale_attn_weights: bool = True
    multi_query: bool = True

    @property
    def kv_heads(self) -> int:
        return 1 if self.multi_query else self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class NeoConfig(Config):
    """`config.json` of model type `gpt_neo`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "activation_function": "hidden_act",
            "intermediate_size": "n_inner",
            "num_heads": "num_attention_heads",
            "num_layers": "num_hidden_layers",
        }
    )

    max_position_embeddings: int = 2048
    attention_types: list[Any] | None = None
    window_size: int = 256

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        # An `intermediate_size` of null means what one that is left out means.
        return super().from_dict({name: value for name, value in config.items() if (name, value) != _NO_SIZE})

    @property
    def windows(self) -> tuple[int, ...]:
        kinds = [kind for repeated in self._attention_types() for kind in repeated]
        if len(kinds) != self.num_hidden_layers:
            raise CheckpointError(f"config.json: attention_types are {len(kinds)} for {self.num_hidden_layers} layers")
        if unknown := [kind for kind in kinds if kind not in ("global", "local")]:
            raise UnsupportedError(
                f"config.json: attention_types has {shown(unknown[0])}; supported are global and local"
            )
        return tuple(self.window_size if kind == "local" else 0 for kind in kinds)

    def _attention_types(self) -> list[list[Any]]:
        """Types of layers, each list as often as the config repeats it."""
        repeated: list[list[Any]] = []
        for row in [[["global", "local"], 12]] if self.attention_types is None else self.attention_types:
            match row:
                case [[*kinds], int(times)] if 0 < times <= 1000:
                    repeated += [kinds] * times
                case _:
                    raise CheckpointError(f"config.json: attention_types has {shown(row)}, not types and how often")
        return repeated


_NO_SIZE = ("intermediate_size", None)
_QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
_MLP = (Fused("mlp.c_fc", ("mlp.up_proj",)), Fused("mlp.c_proj", ("mlp.down_proj",)))
_OUTPUT = Fused("attn.c_proj", ("attn.o_proj",))

GPT2_STORED = tuple(replace(row, transposed=True) for row in (Fused("attn.c_attn", _QKV), _OUTPUT, *_MLP))
BIGCODE_STORED = (Fused("attn.c_attn", _QKV, groups="kv_heads"), _OUTPUT, *_MLP)
NEO_STORED = (
    *(Fused(f"attn.attention.{part}_proj", (f"attn.{part}_proj",)) for part in "qkv"),
    Fused("attn.attention.out_proj", ("attn.o_proj",)),
    *_MLP,
)

_EMBEDDING = "transformer.wte"


def gpt2(config: Gpt2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, config.scales)


def openai_gpt(config: GptConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=config.layer_norm_epsilon, bias=True)
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=True, output_bias=True)
    act = activation("afn", "gelu_new" if config.hidden_act == "gelu" else config.hidden_act)
    mlp = MLP(ops, 4 * config.hidden_size, act, bias=True)
    embedding, longest = "transformer.tokens_embed", config.max_position_embeddings
    positions = ops.embed_positions("transformer.positions_embed", longest, config.hidden_size)
    h = ops.add(embed(ops, config, embedding), positions)
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        h = norm(ops.add(h, attention(h, f"{name}.attn", rotation=None)), f"{name}.ln_1")
        h = norm(ops.add(h, mlp(h, f"{name}.mlp")), f"{name}.ln_2")
    head(ops, config, ops.select(h), embedding)


def gpt_bigcode(config: BigCodeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
    _forward(config, ops, [scale] * config.num_hidden_layers)


def gpt_neo(config: NeoConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, [1.0] * config.num_hidden_layers, qkv_bias=False)


def _forward(config: Config, ops: Recorder, scales: Sequence[float], *, qkv_bias: bool = True) -> None:
    norm = partial(ops.layer_norm, eps=config.layer_norm_epsilon, bias=True)
    attention = Attention(ops, config, scale=1.0, qkv_bias=qkv_bias, output_bias=True)
    act = activation("activation_function", config.hidden_act)
    mlp = MLP(ops, config.mlp_columns, act, bias=True)

    positions = ops.embed_positions("transformer.wpe", config.max_position_embeddings, config.hidden_size)
    h = ops.add(embed(ops, config, _EMBEDDING), positions)
    for layer, (scale, window) in enumerate(zip(scales, config.windows, strict=True)):
        name, scaled = f"transformer.h.{layer}", replace(attention, scale=scale)
        h = ops.add(h, scaled(norm(h, f"{name}.ln_1"), f"{name}.attn", rotation=None, window=window))
        h = ops.add(h, mlp(norm(h, f"{name}.ln_2"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "transformer.ln_f"), _EMBEDDING)
