"""EXAONE 3, CWM and IQuest-Coder: Llama in other words.

EXAONE's tensors have the names of GPT-2. In CWM every fourth layer sees all tokens, the others a window.

LG AI Research, "EXAONE 3.0 7.8B Instruction Tuned Language Model", 2024. Meta FAIR, "CWM: An Open-Weights LLM for
Research on Code Generation with World Models", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.models.config import DecoderConfig, activation, attention_windows
from quantkit.models.decoder import Attention, GatedMLP, embed, head, pre_norm_decoder, rotation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"
    num_key_value_heads: int | None = 8
    rms_norm_eps: float = 1e-5
    mlp_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ExaoneConfig(Config):
    """`config.json` of model type `exaone`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "rms_norm_eps",
            "num_layers": "num_hidden_layers",
        }
    )
    default_theta: ClassVar[float] = 500_000.0

    max_position_embeddings: int = 4096
    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class CwmConfig(Config):
    """`config.json` of model type `cwm`."""

    default_theta: ClassVar[float] = 1_000_000.0

    head_dim: int | None = 128
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 8192
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        kinds = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(self.num_hidden_layers)]
        return attention_windows(self.layer_types, kinds, self.sliding_window)


@dataclass(frozen=True, kw_only=True)
class IQuestConfig(Config):
    """`config.json` of model type `iquestcoder`."""

    head_dim: int | None = 128
    max_position_embeddings: int = 131_072
    attention_bias: bool = False


EXAONE_STORED = (
    Fused("attn.attention.out_proj", ("attn.attention.o_proj",)),
    Fused("mlp.c_fc_0", ("mlp.gate_proj",)),
    Fused("mlp.c_fc_1", ("mlp.up_proj",)),
    Fused("mlp.c_proj", ("mlp.down_proj",)),
)

_CWM_ROPE = MappingProxyType(
    {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
)
"""What a CWM without rope parameters means, beside the default base."""
_EMBEDDING = "transformer.wte"


def exaone(config: ExaoneConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention = _attention(config, ops, bias=config.attention_bias)
    mlp = GatedMLP(ops, config.intermediate_size, activation("activation_function", config.hidden_act), config.mlp_bias)
    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config, _EMBEDDING)
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        h = ops.add(h, attention(norm(h, f"{name}.ln_1"), f"{name}.attn.attention", rotation=angles))
        h = ops.add(h, mlp(norm(h, f"{name}.ln_2"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "transformer.ln_f"), _EMBEDDING)


def cwm(config: CwmConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    given = config.rope_parameters or config.rope_scaling
    rope = parameters_of(config) if given else {"rope_theta": config.default_theta, **_CWM_ROPE}
    pre_norm_decoder(ops, config, _attention(config, ops), _mlps(config, ops), rope=rope)


def iquestcoder(config: IQuestConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    pre_norm_decoder(ops, config, _attention(config, ops, bias=config.attention_bias), _mlps(config, ops))


def _attention(config: Config, ops: Recorder, *, bias: bool = False) -> Attention:
    return Attention(ops, config, config.head_size**-0.5, qkv_bias=bias, output_bias=bias)


def _mlps(config: Config, ops: Recorder) -> list[GatedMLP]:
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act), config.mlp_bias)
    return [mlp] * config.num_hidden_layers
