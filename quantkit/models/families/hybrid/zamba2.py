"""Zamba2: layers of Mamba-2, and before some of them one of a few transformer blocks that all of these layers share.

A block reads the hidden state and the embedding of the token side by side. What it makes is added to the input of the
layer's Mamba-2 alone, not to the hidden state. Low-rank adapters, one for each place where a block stands, tell its
uses apart.

Glorioso et al., "The Zamba2 Suite", 2024 (arXiv:2411.15242).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.models.config import activation
from quantkit.models.decoder import embed, head, rotation, state_space
from quantkit.models.decoder.state_space import Mamba2, Mamba2Config, layer_kinds
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(Mamba2Config):
    """`config.json` of model type `zamba2`; heads of attention are those of hidden states twice as wide."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(("use_conv_bias",))
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "n_mamba_heads": "mamba_n_heads",
            "mamba_headdim": "mamba_d_head",
            "mamba_ngroups": "mamba_n_groups",
            "add_bias_linear": "mamba_proj_bias",
            "layers_block_type": "layer_types",
        }
    )

    intermediate_size: int = 0
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True
    mamba_n_heads: int = 8
    mamba_d_state: int = 64
    time_step_min: float = 0.001
    layer_types: list[Any] | None = None
    num_mem_blocks: int = 1
    use_shared_attention_adapter: bool = False
    adapter_rank: int = 128
    use_mem_rope: bool = False

    @property
    def mamba_act(self) -> str:
        return "silu"

    @property
    def mamba_eps(self) -> float:
        return 1e-5

    @property
    def step_limits(self) -> tuple[float, float]:
        return self.time_step_min, math.inf

    @property
    def head_size(self) -> int:
        return 2 * self.hidden_size // self.num_attention_heads

    @property
    def mlp_columns(self) -> int:
        """Columns of the MLP of a block."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def kinds(self) -> list[str]:
        """What each layer is: `mamba`, or `hybrid`, with a block before it."""
        types = self.layer_types or [_DEFAULT[letter] for letter in "m" + "mmmmmh" * 7 + "mmmmh" + "mmmh" + "mm"]
        return layer_kinds(types, self.num_hidden_layers, _LAYERS)


_DEFAULT = {"m": "mamba", "h": "hybrid"}
_LAYERS = {"mamba": "mamba", "linear_attention": "mamba", "hybrid": "hybrid"}
STORED = (
    *state_space.STORED,
    Fused("feed_forward.gate_up_proj", ("feed_forward.gate_proj", "feed_forward.up_proj")),
    Fused("1", ("1.gate", "1.up")),  # the second matrix of an adapter
)


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    mamba = Mamba2(ops, config, output_bias=config.mamba_proj_bias)
    angles = rotation(ops, config, parameters_of(config)) if config.use_mem_rope else None
    h = embedded = embed(ops, config)
    blocks: list[str] = []
    for layer, kind in enumerate(config.kinds):
        name = f"model.layers.{layer}"
        x = h
        if kind == "hybrid":
            blocks.append(f"{name}.shared_transformer")
            use = len(blocks) - 1
            y = _block(config, ops, ops.append(h, embedded), blocks[use % config.num_mem_blocks], use, angles)
            x = ops.add(h, ops.linear(y, f"{name}.linear", config.hidden_size))
            name = f"{name}.mamba_decoder"
        h = ops.add(h, mamba(norm(x, f"{name}.input_layernorm"), f"{name}.mamba"))
    head(ops, config, norm(ops.select(h), "model.final_layernorm"))


def _block(config: Config, ops: Recorder, x: Value, module: str, use: int, angles: Value | None) -> Value:
    """A shared block at its use number `use`: attention and an MLP, without residual connections."""
    norm, size = partial(ops.rms_norm, eps=config.rms_norm_eps), config.head_size
    x = norm(x, f"{module}.input_layernorm")
    q, k, v = (_projected(config, ops, x, f"{module}.self_attn", name, use) for name in "qkv")
    if angles is not None:
        q, k = (ops.rope(heads, angles, head_dim=size) for heads in (q, k))
    y = ops.attention(q, ops.store_kv(k, v, head_dim=size), scale=(size / 2) ** -0.5)
    y = ops.linear(y, f"{module}.self_attn.o_proj", config.hidden_size)
    return _mlp(config, ops, norm(y, f"{module}.pre_ff_layernorm"), f"{module}.feed_forward", use)


def _projected(config: Config, ops: Recorder, x: Value, module: str, name: str, use: int) -> Value:
    """Queries, keys or values, with the adapter of this use."""
    columns = config.query_columns if name == "q" else config.kv_columns
    y = ops.linear(x, f"{module}.{name}_proj", columns)
    if not config.use_shared_attention_adapter:
        return y
    adapter = f"{module}.linear_{name}_adapter_list.{use}"
    return ops.add(y, ops.linear(ops.linear(x, f"{adapter}.0", config.adapter_rank), f"{adapter}.1", columns))


def _mlp(config: Config, ops: Recorder, x: Value, module: str, use: int) -> Value:
    """A gated MLP, with the adapter of this use."""
    columns, bias = config.mlp_columns, config.mamba_proj_bias
    adapter = f"{module}.gate_up_proj_adapter_list.{use}"
    low = ops.linear(x, f"{adapter}.0", config.adapter_rank)
    gate, up = (
        ops.add(
            ops.linear(x, f"{module}.{name}_proj", columns, bias=bias), ops.linear(low, f"{adapter}.1.{name}", columns)
        )
        for name in ("gate", "up")
    )
    y = ops.gated(gate, up, activation("hidden_act", config.hidden_act))
    return ops.linear(y, f"{module}.down_proj", x.columns, bias=bias)
