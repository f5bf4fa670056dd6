"""GPT-NeoX and those that are built like it: LayerNorms, and in most of them heads of which only a part is rotated.

They differ in flags. In GPT-NeoX (Pythia) and Phi (1 to 2) attention and MLP read the same residual stream, side by
side; in StableLM the config says whether. Phi and StableLM then have one norm for both. Starcoder2 sees a window and
rotates whole heads. StableLM's MLP is gated; each of its heads may have a norm of its own. Nemotron's norms multiply by
`1 + weight`. Falcon has one norm or two for attention and MLP, and sizes that it spells in a way of its own. Persimmon
normalizes heads, Jais 2 rotates whole ones. GPT-NeoX Japanese has no biases but one, behind its last attention.

Black et al., "GPT-NeoX-20B", 2022. Li et al., "Textbooks Are All You Need II: phi-1.5", 2023. Lozhkov et al.,
"StarCoder 2 and The Stack v2", 2024. Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024. Parmar et al.,
"Nemotron-4 15B Technical Report", 2024. Almazrouei et al., "The Falcon Series", 2023. Elsen et al., "Releasing
Persimmon-8B", 2023. Inception, "Jais 2", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from quantkit.errors import UnsupportedError
from quantkit.models.config import DecoderConfig, activation
from quantkit.models.decoder import EMBEDDING, MLP, Attention, GatedMLP, Norm, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused, Named, Split


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class NeoXConfig(Config):
    """`config.json` of model type `gpt_neox`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    )
    default_rotary_part: ClassVar[float | None] = 0.25

    use_parallel_residual: bool = True
    attention_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class JapaneseConfig(Config):
    """`config.json` of model type `gpt_neox_japanese`; its MLPs are so many times as wide as the hidden size."""

    SPELLINGS: ClassVar[Mapping[str, str]] = NeoXConfig.SPELLINGS
    default_rotary_part: ClassVar[float | None] = 1.0

    intermediate_size: int = 0
    intermediate_multiple_size: int = 4
    tie_word_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class PhiConfig(Config):
    """`config.json` of model type `phi`."""

    default_rotary_part: ClassVar[float | None] = 0.5

    hidden_act: str = "gelu_new"
    qk_layernorm: bool = False


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(Config):
    """`config.json` of model type `stablelm`."""

    default_rotary_part: ClassVar[float | None] = 0.25

    num_key_value_heads: int | None = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(Config):
    """`config.json` of model type `starcoder2`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"norm_epsilon": "layer_norm_eps"})

    num_key_value_heads: int | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 4096
    sliding_window: int | None = None
    use_bias: bool = True
    tie_word_embeddings: bool = True

    @property
    def windows(self) -> tuple[int, ...]:
        return (self.sliding_window or 0,) * self.num_hidden_layers


@dataclass(frozen=True, kw_only=True)
class NemotronConfig(Config):
    """`config.json` of model type `nemotron`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"norm_eps": "layer_norm_eps"})
    default_rotary_part: ClassVar[float | None] = 0.5

    hidden_act: str = "relu2"
    max_position_embeddings: int = 4096
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Jais2Config(Config):
    """`config.json` of model type `jais2`."""

    hidden_act: str = "relu2"
    max_position_embeddings: int = 8192
    attention_bias: bool = True
    mlp_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class PersimmonConfig(Config):
    """`config.json` of model type `persimmon`."""

    default_rotary_part: ClassVar[float | None] = 0.5

    hidden_act: str = "relu2"
    max_position_embeddings: int = 16_384
    qk_layernorm: bool = True


@dataclass(frozen=True, kw_only=True)
class FalconConfig(Config):
    """`config.json` of model type `falcon`; `ffn_hidden_size` stands for the `intermediate_size` of others."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "activation": "hidden_act",
            "layer_norm_epsilon": "layer_norm_eps",
            "n_embed": "hidden_size",
            "num_kv_heads": "num_key_value_heads",
        }
    )

    intermediate_size: int = 0
    ffn_hidden_size: int | None = None
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    num_ln_in_parallel_attn: int | None = None
    bias: bool = False
    tie_word_embeddings: bool = True

    @property
    def kv_heads(self) -> int:
        if self.new_decoder_architecture:
            return super().kv_heads
        return 1 if self.multi_query else self.num_attention_heads


NEOX_STORED = (
    Fused(
        "attention.query_key_value",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        groups="num_attention_heads",
    ),
    Fused("attention.dense", ("self_attn.o_proj",)),
    Fused("mlp.dense_h_to_4h", ("mlp.up_proj",)),
    Fused("mlp.dense_4h_to_h", ("mlp.down_proj",)),
    Fused("embed_out", ("lm_head",)),
)
JAPANESE_STORED = (Named("attention.dense_bias", "self_attn.o_proj.bias"), *NEOX_STORED)
_NORMED_HEADS = (
    Fused("self_attn.dense", ("self_attn.o_proj",)),
    Fused("self_attn.q_layernorm", ("self_attn.q_norm",)),
    Fused("self_attn.k_layernorm", ("self_attn.k_norm",)),
)
PERSIMMON_STORED = (
    Fused(
        "self_attn.query_key_value",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        groups="num_attention_heads",
    ),
    *_NORMED_HEADS,
    Fused("mlp.dense_h_to_4h", ("mlp.up_proj",)),
    Fused("mlp.dense_4h_to_h", ("mlp.down_proj",)),
)
PHI_STORED = (
    *_NORMED_HEADS,
    Fused("mlp.fc1", ("mlp.up_proj",)),
    Fused("mlp.fc2", ("mlp.down_proj",)),
)
STABLELM_STORED = (
    Split("self_attn.q_norm", "self_attn.q_layernorm.norms.*", "num_attention_heads"),
    Split("self_attn.k_norm", "self_attn.k_layernorm.norms.*", "kv_heads"),
)
STARCODER2_STORED = (Fused("mlp.c_fc", ("mlp.up_proj",)), Fused("mlp.c_proj", ("mlp.down_proj",)))

FALCON_STORED = (
    Fused(
        "self_attention.query_key_value",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        groups="kv_heads",
    ),
    Fused("self_attention.dense", ("self_attn.o_proj",)),
    Fused("mlp.dense_h_to_4h", ("mlp.up_proj",)),
    Fused("mlp.dense_4h_to_h", ("mlp.down_proj",)),
)


_BEFORE_BOTH = ("input_layernorm",)
_BEFORE_EACH = ("input_layernorm", "post_attention_layernorm")


class _Layer(NamedTuple):
    """What a layer consists of, side by side (`parallel`) or in turn; a second norm is that of the MLP."""

    norm: Norm
    attention: Attention
    mlp: Callable[[Value, str], Value]
    parallel: bool = False
    norms: tuple[str, ...] = _BEFORE_EACH
    last: Attention | None = None
    """Attention of the last layer, where it is another."""


def gpt_neox(config: NeoXConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True), config.attention_bias
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    layer = _Layer(norm, attention, _mlp(config, ops), config.use_parallel_residual)
    embedding = "gpt_neox.embed_in"
    x = _body(config, ops, layer, blocks="gpt_neox.layers", last_norm="gpt_neox.final_layer_norm", embedding=embedding)
    head(ops, config, x, embedding)


def japanese(config: JapaneseConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True)
    attention = Attention(ops, config, scale=config.head_size**-0.5)
    mlp = MLP(ops, config.intermediate_multiple_size * config.hidden_size, activation("hidden_act", config.hidden_act))
    layer = _Layer(norm, attention, mlp, last=replace(attention, output_bias=True))
    base = "gpt_neox_japanese"
    embedding, last_norm = f"{base}.embed_in", f"{base}.final_layer_norm"
    x = _body(config, ops, layer, blocks=f"{base}.layers", last_norm=last_norm, embedding=embedding)
    head(ops, config, x, embedding)


def phi(config: PhiConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    if config.tie_word_embeddings:
        raise UnsupportedError("config.json: tie_word_embeddings is True; the head of phi has a bias of its own")
    norm = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True)
    head_norm = partial(norm, size=config.head_size) if config.qk_layernorm else None
    scale = config.head_size**-0.5
    attention = Attention(ops, config, scale=scale, norm=head_norm, qkv_bias=True, output_bias=True)
    layer = _Layer(norm, attention, _mlp(config, ops), parallel=True, norms=_BEFORE_BOTH)
    head(ops, config, _body(config, ops, layer, last_norm="model.final_layernorm"), bias=True)


def stablelm(config: StableLmConfig, ops: Recorder) -> None:
    """Record the forward pass."""

    def head_norm(x: Value, module: str) -> Value:
        size, weights = config.head_size, (x.columns,)
        return ops.layer_norm(x, module, config.layer_norm_eps, size=size, weight_shape=weights)

    norm = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True)
    qk_norm = head_norm if config.qk_layernorm else None
    scale = config.head_size**-0.5
    attention = Attention(ops, config, scale=scale, norm=qk_norm, qkv_bias=config.use_qkv_bias)
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))
    norms = _BEFORE_BOTH if config.use_parallel_residual else _BEFORE_EACH
    layer = _Layer(norm, attention, mlp, config.use_parallel_residual, norms)
    head(ops, config, _body(config, ops, layer))


def starcoder2(config: Starcoder2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True), config.use_bias
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    head(ops, config, _body(config, ops, _Layer(norm, attention, _mlp(config, ops, bias=bias))))


def nemotron(config: NemotronConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True, offset=1.0)
    bias = config.attention_bias
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    head(ops, config, _body(config, ops, _Layer(norm, attention, _mlp(config, ops, bias=config.mlp_bias))))


def jais2(config: Jais2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True), config.attention_bias
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    head(ops, config, _body(config, ops, _Layer(norm, attention, _mlp(config, ops, bias=config.mlp_bias))))


def persimmon(config: PersimmonConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True)
    head_norm = partial(norm, size=config.head_size) if config.qk_layernorm else None
    scale = config.head_size**-0.5
    attention = Attention(ops, config, scale=scale, norm=head_norm, qkv_bias=True, output_bias=True)
    layer = _Layer(norm, attention, _mlp(config, ops))
    head(ops, config, _body(config, ops, layer, last_norm="model.final_layernorm"))


def falcon(config: FalconConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    norm, bias = partial(ops.layer_norm, eps=config.layer_norm_eps, bias=True), config.bias
    attention = Attention(ops, config, scale=config.head_size**-0.5, qkv_bias=bias, output_bias=bias)
    size = config.ffn_hidden_size or 4 * config.hidden_size
    mlp = MLP(ops, size, activation("activation", config.hidden_act), bias=bias)
    parallel = config.new_decoder_architecture or config.parallel_attn
    norms = _BEFORE_BOTH if parallel else _BEFORE_EACH
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1:
        norms = ("ln_attn", "ln_mlp")
    layer, embedding = _Layer(norm, attention, mlp, parallel, norms), "transformer.word_embeddings"
    x = _body(config, ops, layer, blocks="transformer.h", last_norm="transformer.ln_f", embedding=embedding)
    head(ops, config, x, embedding)


def _mlp(config: Config, ops: Recorder, *, bias: bool = True) -> MLP:
    return MLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act), bias=bias)


def _body(
    config: Config,
    ops: Recorder,
    layer: _Layer,
    *,
    blocks: str = "model.layers",
    last_norm: str = "model.norm",
    embedding: str = EMBEDDING,
) -> Value:
    """All layers and the norm after them -> `[wanted, hidden_size]`."""
    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config, embedding)
    for number, window in enumerate(config.windows):
        name = f"{blocks}.{number}"
        first, *second = layer.norms
        x = layer.norm(h, f"{name}.{first}")
        attention = layer.last if layer.last and number == config.num_hidden_layers - 1 else layer.attention
        attended = ops.add(h, attention(x, f"{name}.self_attn", rotation=angles, window=window))
        for norm in second:
            x = layer.norm(h if layer.parallel else attended, f"{name}.{norm}")
        h = ops.add(attended, layer.mlp(x, f"{name}.mlp"))
    return layer.norm(ops.select(h), last_norm)
