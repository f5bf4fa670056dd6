"""Llama and those that are built like it: a norm before attention and before the gated MLP, heads that are rotated.

They differ in flags. Llama 1 to 3 stands for SmolLM2, TinyLlama, Yi and many more as well. Mistral sees a window, which
later versions leave out (`null`). Qwen2 and Qwen2.5 have biases of queries, keys and values; Qwen3 normalizes every
query and key head before it is rotated, and frees the size of a head from the hidden size. Phi-3 stores matrices that
read the same input as one. SmolLM3 leaves the heads of every fourth layer unrotated. The MLPs of Arcee and Apertus have
no gate, and Apertus learns its activation. Ministral 3 scales its queries up in long texts. BitNet has two norms
more, and ternary weights, which are exact in four bits.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023. Jiang et al., "Mistral 7B", 2023.
Yang et al., "Qwen2 Technical Report", 2024, and "Qwen3 Technical Report", 2025. Abdin et al., "Phi-3 Technical Report",
2024. Bakouch et al., "SmolLM3", 2025. ByteDance Seed, "Seed-OSS", 2025. Cai et al., "InternLM2 Technical Report", 2024.
Hernández-Cano et al., "Apertus", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, is_positive, shown
from quantkit.models.decoder import MLP, XIELU, Attention, GatedMLP, Norm, embed, head, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    hidden_act: str = "silu"

    @property
    def activation(self) -> str:
        """The MLP's, by the name that `decoder/` has for it."""
        return activation("hidden_act", self.hidden_act)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """`config.json` of model type `llama`."""

    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ArceeConfig(LlamaConfig):
    """`config.json` of model type `arcee`."""

    hidden_act: str = "relu2"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class ApertusConfig(Config):
    """`config.json` of model type `apertus`, whose heads have norms whatever the config says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"qk_norm"})
    default_theta: ClassVar[float] = 12_000_000.0
    default_rope: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "rope_type": "llama3",
            "rope_theta": 12_000_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    )

    hidden_act: str = XIELU
    max_position_embeddings: int = 65_536
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    @property
    def activation(self) -> str:
        return XIELU if self.hidden_act == XIELU else super().activation


@dataclass(frozen=True, kw_only=True)
class BitnetConfig(Config):
    """`config.json` of model type `bitnet`."""

    default_theta: ClassVar[float] = 500_000.0

    num_key_value_heads: int | None = 5
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class SeedConfig(LlamaConfig):
    """`config.json` of model type `seed_oss`."""

    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 524_288
    attention_bias: bool = True
    attention_out_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class InternLM3Config(LlamaConfig):
    """`config.json` of model type `internlm3`, which spells two fields in a way of its own."""

    num_key_value_heads: int | None = 2
    head_dim: int | None = 128
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-5
    qkv_bias: bool | None = None
    bias: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(LlamaConfig):
    """`config.json` of model type `smollm3`."""

    default_theta: ClassVar[float] = 2_000_000.0

    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = True
    no_rope_layers: list[Any] | None = None
    no_rope_layer_interval: int = 4
    use_sliding_window: bool = False
    sliding_window: int | None = None
    layer_types: list[Any] | None = None

    @property
    def rotated(self) -> tuple[bool, ...]:
        flags = self.no_rope_layers
        if flags is None:
            return tuple(layer % self.no_rope_layer_interval != 0 for layer in range(1, self.num_hidden_layers + 1))
        layers = self.num_hidden_layers
        if len(flags) < layers or any(type(flag) is not int or flag not in (0, 1) for flag in flags):
            raise CheckpointError(
                f"config.json: no_rope_layers is {shown(flags)}, not 0 or 1 for each of {layers} layers"
            )
        return tuple(map(bool, flags[:layers]))

    @property
    def windows(self) -> tuple[int, ...]:
        window = self.sliding_window if self.use_sliding_window else None
        default = ["sliding_attention" if window and not rotated else "full_attention" for rotated in self.rotated]
        return attention_windows(self.layer_types, default, window)


@dataclass(frozen=True, kw_only=True)
class MistralConfig(Config):
    """`config.json` of model types `mistral` and `ministral`: transformers' name of a `mistral` with `layer_types`."""

    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 4096
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        kind = "full_attention" if self.sliding_window is None else "sliding_attention"
        return attention_windows(self.layer_types, [kind] * self.num_hidden_layers, self.sliding_window)


@dataclass(frozen=True, kw_only=True)
class Ministral3Config(Config):
    """`config.json` of model type `ministral3`."""

    default_rope: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16_384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        }
    )

    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 262_144
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        return (self.sliding_window or 0,) * self.num_hidden_layers


@dataclass(frozen=True, kw_only=True)
class Phi3Config(Config):
    """`config.json` of model type `phi3`."""

    ROPE_TYPES: ClassVar[Mapping[str, str]] = MappingProxyType({"su": "longrope", "yarn": "longrope"})
    default_rotary_part: ClassVar[float | None] = 1.0

    max_position_embeddings: int = 4096
    original_max_position_embeddings: int | None = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        return (self.sliding_window or 0,) * self.num_hidden_layers


@dataclass(frozen=True, kw_only=True)
class QwenConfig(Config):
    """The fields that Qwen2 and Qwen3 have."""

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32_768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = bounded(28, minimum=0)
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        window = self.sliding_window if self.use_sliding_window else None
        full = self.max_window_layers if window else self.num_hidden_layers
        default = ["full_attention" if i < full else "sliding_attention" for i in range(self.num_hidden_layers)]
        return attention_windows(self.layer_types, default, window)


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(QwenConfig):
    """`config.json` of model type `qwen2`, whose queries, keys and values have biases whatever the config says."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"attention_bias", "qkv_bias"})


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(QwenConfig):
    """`config.json` of model type `qwen3`."""

    head_dim: int | None = 128
    attention_bias: bool = False


def llama(config: LlamaConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    bias = config.attention_bias
    _forward(config, ops, qkv_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias)


def arcee(config: ArceeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    bias = config.attention_bias
    _forward(config, ops, qkv_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias, mlp=MLP)


APERTUS_STORED = (
    Fused("attention_layernorm", ("input_layernorm",)),
    Fused("feedforward_layernorm", ("post_attention_layernorm",)),
)


def apertus(config: ApertusConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    bias, head_norm = config.attention_bias, _norm(config, ops, config.head_size)
    _forward(config, ops, qkv_bias=bias, output_bias=bias, norm=head_norm, mlp=MLP)


def bitnet(config: BitnetConfig, ops: Recorder) -> None:
    """Record the forward pass; the norms before the last projections of attention and MLP are BitNet's own."""
    bias, norm = config.attention_bias, _norm(config, ops)
    _forward(config, ops, qkv_bias=bias, output_bias=bias, sub_norm=norm, mlp=partial(GatedMLP, sub_norm=norm))


def seed_oss(config: SeedConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    output_bias = config.attention_out_bias
    _forward(config, ops, qkv_bias=config.attention_bias, output_bias=output_bias, mlp_bias=config.mlp_bias)


def internlm3(config: InternLM3Config, ops: Recorder) -> None:
    """Record the forward pass."""
    qkv_bias = config.attention_bias if config.qkv_bias is None else config.qkv_bias
    bias = config.mlp_bias if config.bias is None else config.bias
    _forward(config, ops, qkv_bias=qkv_bias, output_bias=bias, mlp_bias=bias)


def smollm3(config: SmolLM3Config, ops: Recorder) -> None:
    """Record the forward pass."""
    bias = config.attention_bias
    _forward(config, ops, qkv_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias)


def mistral(config: MistralConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops)


def ministral3(config: Ministral3Config, ops: Recorder) -> None:
    """Record the forward pass; queries beyond the original length are scaled up (`llama_4_scaling_beta`)."""
    rope = parameters_of(config)
    beta = rope.pop("llama_4_scaling_beta", None)
    length = rope.get("original_max_position_embeddings", config.max_position_embeddings)
    if not (is_positive(beta) and is_positive(length) and length >= 1):
        raise CheckpointError(
            "config.json: the rope parameters llama_4_scaling_beta and original_max_position_embeddings are "
            f"{shown(beta)} and {shown(length)}, not positive numbers"
        )
    scaled = partial(ops.scale_by_position, beta=beta, period=int(length))
    _forward(config, ops, rope=rope, queries=scaled)


PHI3_STORED = (
    Fused("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
)


def phi3(config: Phi3Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops)


def qwen2(config: Qwen2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, qkv_bias=True)


def qwen3(config: Qwen3Config, ops: Recorder) -> None:
    """Record the forward pass."""
    bias, head_norm = config.attention_bias, _norm(config, ops, config.head_size)
    _forward(config, ops, qkv_bias=bias, output_bias=bias, norm=head_norm)


def _norm(config: Config, ops: Recorder, size: int | None = None) -> Norm:
    return partial(ops.rms_norm, eps=config.rms_norm_eps, size=size)


def _forward(
    config: Config,
    ops: Recorder,
    *,
    mlp: Callable[..., Callable[[Value, str], Value]] = GatedMLP,
    mlp_bias: bool = False,
    rope: Mapping[str, Any] | None = None,
    **attention: Any,
) -> None:
    """Record the forward pass; `rope` stands for the config's parameters, what is left over is for `Attention`."""
    norm, attend = _norm(config, ops), Attention(ops, config, scale=config.head_size**-0.5, **attention)
    feed_forward = mlp(ops, config.intermediate_size, config.activation, bias=mlp_bias)

    angles = rotation(ops, config, parameters_of(config) if rope is None else rope)
    h = embed(ops, config)
    for layer, (window, rotated) in enumerate(zip(config.windows, config.rotated, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        h = ops.add(h, attend(x, f"{name}.self_attn", rotation=angles if rotated else None, window=window))
        x = norm(h, f"{name}.post_attention_layernorm")
        h = ops.add(h, feed_forward(x, f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "model.norm"))
