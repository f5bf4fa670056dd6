"""GPT-2: learned positions, LayerNorms, an MLP without a gate, and matrices that are stored transposed (`Conv1D`).

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import ClassVar

from quantkit.models.config import DecoderConfig, activation
from quantkit.models.decoder import MLP, Attention, embed, head
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `gpt2`; `n_inner` stands for the `intermediate_size` of others."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "activation_function": "hidden_act",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
        }
    )

    intermediate_size: int = 0
    n_inner: int | None = None
    max_position_embeddings: int = 1024
    hidden_act: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def scale(self, layer: int) -> float:
        """Return what multiplies the scores of a layer."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


STORED = (
    Fused("attn.c_attn", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), transposed=True),
    Fused("attn.c_proj", ("attn.o_proj",), transposed=True),
    Fused("mlp.c_fc", ("mlp.up_proj",), transposed=True),
    Fused("mlp.c_proj", ("mlp.down_proj",), transposed=True),
)

_EMBEDDING = "transformer.wte"


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=config.layer_norm_epsilon, bias=True)
    attention = Attention(ops, config, scale=config.scale(0), qkv_bias=True, output_bias=True)
    act = activation("activation_function", config.hidden_act)
    mlp = MLP(ops, config.n_inner or 4 * config.hidden_size, act, bias=True)

    positions = ops.embed_positions("transformer.wpe", config.max_position_embeddings, config.hidden_size)
    h = ops.add(embed(ops, config, _EMBEDDING), positions)
    for layer in range(config.num_hidden_layers):
        name = f"transformer.h.{layer}"
        scaled = replace(attention, scale=config.scale(layer))
        h = ops.add(h, scaled(norm(h, f"{name}.ln_1"), f"{name}.attn", rotation=None))
        h = ops.add(h, mlp(norm(h, f"{name}.ln_2"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "transformer.ln_f"), _EMBEDDING)
