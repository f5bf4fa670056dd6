"""DBRX: many small experts of which a token goes to several, LayerNorms without biases, and limited queries, keys and
values.

What concerns attention and what concerns experts stand each in an object of its own in the config.

Mosaic Research, "Introducing DBRX: A New State-of-the-Art Open LLM", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self

from quantkit.errors import UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, shown
from quantkit.models.decoder import Attention, Experts, Router, embed, head, rotation
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused

_PARTS = ("attn_config", "ffn_config")
_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `dbrx`; the fields of its parts are spelled with a dot."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "attn_config.clip_qkv": "clip_qkv",
            "attn_config.kv_n_heads": "num_key_value_heads",
            "attn_config.rope_theta": "rope_theta",
            "d_model": "hidden_size",
            "ffn_config.ffn_act_fn.name": "hidden_act",
            "ffn_config.ffn_hidden_size": "intermediate_size",
            "ffn_config.moe_normalize_expert_weights": "moe_normalize_expert_weights",
            "ffn_config.moe_num_experts": "moe_num_experts",
            "ffn_config.moe_top_k": "moe_top_k",
            "max_seq_len": "max_position_embeddings",
            "n_heads": "num_attention_heads",
            "n_layers": "num_hidden_layers",
        }
    )

    attn_config: Mapping[str, Any] | None = None
    ffn_config: Mapping[str, Any] | None = None
    num_key_value_heads: int | None = 1
    intermediate_size: int = 3584
    clip_qkv: float | None = None
    hidden_act: str = "silu"
    moe_num_experts: int = bounded(4, maximum=1024)
    moe_top_k: int = 1
    moe_normalize_expert_weights: float | None = 1.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        # Fields of the parts count there alone; the base of rotary embedding is read at the top level as well.
        parts = {ours for theirs, ours in cls.SPELLINGS.items() if theirs.startswith(_PARTS)} - {"rope_theta"}
        plain = {name: value for name, value in config.items() if name not in parts}
        return super().from_dict({**_flat({part: config.get(part) for part in _PARTS}), **plain})


STORED = (
    Fused("attn.Wqkv", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    Fused("attn.out_proj", ("attn.o_proj",)),
    Fused("experts.mlp.w1", ("experts.*.w1",), weight="", flat=True),
    Fused("experts.mlp.v1", ("experts.*.v1",), weight="", flat=True),
    Fused("experts.mlp.w2", ("experts.*.w2",), weight="", flat=True, transposed=True),
)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of objects within objects under their full names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    power = config.moe_normalize_expert_weights
    if power not in (None, 1):  # the sum of so many powers, of which the root is taken
        raise UnsupportedError(
            f"config.json: ffn_config.moe_normalize_expert_weights is {shown(power)}; supported are 1 and null"
        )
    if config.tie_word_embeddings:
        raise UnsupportedError("config.json: tie_word_embeddings is True; dbrx has a head of its own")
    norm = partial(ops.layer_norm, eps=_EPS)
    attention = Attention(ops, config, config.head_size**-0.5, clip=config.clip_qkv)
    router = Router(ops, config.moe_num_experts, config.moe_top_k, name="router.layer", normalize=power == 1)
    gated = partial(ops.gated, activation=activation("ffn_config.ffn_act_fn.name", config.hidden_act))
    experts = Experts(ops, router, config.intermediate_size, gated, gate="w1", up="v1", down="w2")
    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config, "transformer.wte")
    for layer in range(config.num_hidden_layers):
        name = f"transformer.blocks.{layer}"
        x = norm(h, f"{name}.norm_attn_norm.norm_1")
        h = ops.add(h, attention(x, f"{name}.norm_attn_norm.attn", rotation=angles))
        h = ops.add(h, experts(norm(h, f"{name}.norm_attn_norm.norm_2"), f"{name}.ffn"))
    head(ops, config, norm(ops.select(h), "transformer.norm_f"))
