"""GPT-J and CodeGen: attention and MLP read the same norm, side by side; neighbouring channels of heads are rotated.

CodeGen stores queries, values and keys in four parts, as it was trained.

Wang and Komatsuzaki, "GPT-J-6B", 2021. Nijkamp et al., "CodeGen", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import activation
from quantkit.models.config.gpt import GptConfig
from quantkit.models.decoder import MLP, Attention, embed, head
from quantkit.models.recorder import Recorder
from quantkit.models.rope import rotary
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(GptConfig):
    """`config.json` of model type `gptj`."""

    rotary_dim: int = 64


@dataclass(frozen=True, kw_only=True)
class CodegenConfig(Config):
    """`config.json` of model type `codegen`."""

    parts: ClassVar[int] = 4
    """In how many its projections are stored."""


GPTJ_STORED = (
    Fused("attn.out_proj", ("attn.o_proj",)),
    Fused("mlp.fc_in", ("mlp.up_proj",)),
    Fused("mlp.fc_out", ("mlp.down_proj",)),
)
CODEGEN_STORED = (
    Fused("attn.qkv_proj", ("attn.q_proj", "attn.v_proj", "attn.k_proj"), groups="parts"),
    *GPTJ_STORED,
)

_EMBEDDING = "transformer.wte"


def gptj(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.tie_word_embeddings:
        raise UnsupportedError(
            "config.json: tie_word_embeddings is True; the head of gptj and codegen has a bias of its own"
        )
    if config.rotary_dim % 2 or config.rotary_dim > config.head_size:
        raise CheckpointError(
            f"config.json: rotary_dim {config.rotary_dim} is not an even number up to {config.head_size}"
        )
    norm = partial(ops.layer_norm, eps=config.layer_norm_epsilon, bias=True)
    attention = Attention(ops, config, scale=config.head_size**-0.5, interleaved=True)
    act = activation("activation_function", config.hidden_act)
    mlp = MLP(ops, config.mlp_columns, act, bias=True)
    theta, longest = {"rope_theta": config.default_theta}, config.max_position_embeddings
    angles = ops.rotation(*rotary(theta, head_dim=config.rotary_dim, context_length=longest))

    h = embed(ops, config, _EMBEDDING)
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        x = norm(h, f"{name}.ln_1")
        both = ops.add(attention(x, f"{name}.attn", rotation=angles), mlp(x, f"{name}.mlp"))
        h = ops.add(h, both)
    head(ops, config, norm(ops.select(h), "transformer.ln_f"), bias=True)


def codegen(config: CodegenConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.num_attention_heads % config.parts:
        raise CheckpointError(
            f"config.json: num_attention_heads {config.num_attention_heads} is no multiple of {config.parts}"
        )
    gptj(config, ops)
