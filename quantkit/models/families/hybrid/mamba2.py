"""Mamba-2, which has no attention at all, and Bamba, which has it in a few layers.

Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
2024. IBM, Princeton, CMU and UIUC, "Bamba-9B", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import activation, bounded, shown
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
from quantkit.models.decoder.state_space import Mamba2, Mamba2Config
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(Mamba2Config):
    """`config.json` of model type `mamba2`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "num_heads": "mamba_n_heads",
            "head_dim": "mamba_d_head",
            "n_groups": "mamba_n_groups",
            "state_size": "mamba_d_state",
            "conv_kernel": "mamba_d_conv",
            "expand": "mamba_expand",
            "use_conv_bias": "mamba_conv_bias",
            "use_bias": "mamba_proj_bias",
            "layer_norm_epsilon": "rms_norm_eps",
        }
    )

    num_hidden_layers: int = bounded(64, maximum=1000)
    mamba_d_head: int | None = 64
    mamba_n_groups: int = 8
    mamba_d_state: int = 128
    rms_norm_eps: float = 1e-5
    intermediate_size: int = 0
    num_attention_heads: int = 1
    max_position_embeddings: int = 2**20
    """Nothing depends on a position."""

    def _check_heads(self) -> None:
        self._check_mamba()


@dataclass(frozen=True, kw_only=True)
class BambaConfig(Mamba2Config):
    """`config.json` of model type `bamba`."""

    default_rotary_part: ClassVar[float | None] = 0.5

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 262_144
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    attn_layer_indices: list[Any] | None = None

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each layer has attention."""
        chosen = self.attn_layer_indices or []
        if not all(type(layer) is int for layer in chosen):
            raise CheckpointError(f"config.json: attn_layer_indices is {shown(chosen)}, not a list of layers")
        return tuple(layer in chosen for layer in range(self.num_hidden_layers))


def mamba2(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, embedding = partial(ops.rms_norm, eps=config.rms_norm_eps), "backbone.embeddings"
    mixer = Mamba2(ops, config, output_bias=config.mamba_proj_bias)
    h = embed(ops, config, embedding)
    for layer in range(config.num_hidden_layers):
        name = f"backbone.layers.{layer}"
        h = ops.add(h, mixer(norm(h, f"{name}.norm"), f"{name}.mixer"))
    head(ops, config, norm(ops.select(h), "backbone.norm_f"), embedding)


def bamba(config: BambaConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.rms_norm, eps=config.rms_norm_eps), config.attention_bias
    attention = Attention(ops, config, config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    mamba = Mamba2(ops, config, output_bias=config.mamba_proj_bias)
    act = activation("hidden_act", config.hidden_act)
    mlp = GatedMLP(ops, config.intermediate_size, act, bias=config.mlp_bias)
    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    for layer, attends in enumerate(config.attends):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        x = attention(x, f"{name}.self_attn", rotation=angles) if attends else mamba(x, f"{name}.mamba")
        h = ops.add(h, x)
        h = ops.add(h, mlp(norm(h, f"{name}.pre_ff_layernorm"), f"{name}.feed_forward"))
    head(ops, config, norm(ops.select(h), "model.final_layernorm"))
