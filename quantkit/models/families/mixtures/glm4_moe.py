"""GLM-4.5 and those that are built like it: experts are chosen by sigmoids, and another one is there for all tokens.

A router's scores are logistic functions of its logits; a bias is added for the choice alone, which may be restricted to
the best groups of experts. The first layers have a plain MLP. They differ in flags: GLM rotates half of each head's
channels, dots.llm1 normalizes heads and may have windows, K-EXAONE rotates no heads of the layers that see all tokens,
Solar Open has experts everywhere, Sarvam stores queries, keys and values as one, Hunyuan 3 normalizes heads.

GLM-4.5 Team, "GLM-4.5: Agentic, Reasoning, and Coding (ARC) Foundation Models", 2025. rednote-hilab, "dots.llm1
Technical Report", 2025. Upstage, "Solar Open Technical Report", 2026. LG AI Research, "K-EXAONE Technical Report",
2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, attention_windows, bounded, every_nth_full, shown
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Router, WithShared, pre_norm_decoder
from quantkit.models.recorder import Recorder
from quantkit.models.stored import Fused, Named


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that all of them have."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType({"num_local_experts": "n_routed_experts"})

    hidden_act: str = "silu"
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    moe_intermediate_size: int = 1408
    n_routed_experts: int = bounded(128, maximum=1024)
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = bounded(1, minimum=0)

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts, not a plain MLP."""
        return tuple(layer >= self.first_k_dense_replace for layer in range(self.num_hidden_layers))


@dataclass(frozen=True, kw_only=True)
class GlmConfig(Config):
    """`config.json` of model type `glm4_moe`."""

    default_rotary_part: ClassVar[float | None] = 0.5

    use_qk_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class SarvamConfig(GlmConfig):
    """`config.json` of model type `sarvam_moe`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "num_local_experts": "n_routed_experts",
            "num_experts": "n_routed_experts",
            "num_shared_experts": "n_shared_experts",
            "use_qkv_bias": "attention_bias",
        }
    )
    default_theta: ClassVar[float] = 8_000_000.0
    default_rotary_part: ClassVar[float | None] = 1.0

    num_key_value_heads: int | None = 4
    head_dim: int | None = 64
    rms_norm_eps: float = 1e-6
    moe_intermediate_size: int = 1024
    num_experts_per_tok: int = 6
    routed_scaling_factor: float = 2.5
    use_qk_norm: bool = True


@dataclass(frozen=True, kw_only=True)
class SolarConfig(Config):
    """`config.json` of model type `solar_open`, which has no plain MLP, whatever the config says of one."""

    default_theta: ClassVar[float] = 1_000_000.0
    default_rotary_part: ClassVar[float | None] = 1.0

    intermediate_size: int = 0
    head_dim: int | None = 128
    moe_intermediate_size: int = 1280

    @property
    def sparse(self) -> tuple[bool, ...]:
        return (True,) * self.num_hidden_layers


@dataclass(frozen=True, kw_only=True)
class DotsConfig(Config):
    """`config.json` of model type `dots1`."""

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    norm_topk_prob: bool = False
    first_k_dense_replace: int = bounded(0, minimum=0)
    sliding_window: int | None = 4096
    max_window_layers: int = bounded(62, minimum=0)
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        full = self.max_window_layers if self.sliding_window else self.num_hidden_layers
        default = ["full_attention" if i < full else "sliding_attention" for i in range(self.num_hidden_layers)]
        return attention_windows(self.layer_types, default, self.sliding_window)


@dataclass(frozen=True, kw_only=True)
class LayerConfig(Config):
    """The fields of those that may name the layers with experts."""

    mlp_layer_types: list[Any] | None = None

    @property
    def sparse(self) -> tuple[bool, ...]:
        kinds, layers = self.mlp_layer_types, self.num_hidden_layers
        if kinds is None:
            return super().sparse
        if len(kinds) != layers or any(kind not in ("dense", "sparse") for kind in kinds):
            raise UnsupportedError(
                f"config.json: mlp_layer_types is {shown(kinds)}, not dense or sparse for each of {layers} layers"
            )
        return tuple(kind == "sparse" for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class HunyuanConfig(LayerConfig):
    """`config.json` of model type `hy_v3`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"enable_moe_fp32_combine"})
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "num_local_experts": "n_routed_experts",
            "num_experts": "n_routed_experts",
            "num_shared_experts": "n_shared_experts",
            "router_scaling_factor": "routed_scaling_factor",
        }
    )
    default_theta: ClassVar[float] = 11_158_840.0

    head_dim: int | None = 128
    mlp_bias: bool = False
    moe_intermediate_size: int = 1536
    n_routed_experts: int = bounded(192, maximum=1024)
    routed_scaling_factor: float = 2.826


@dataclass(frozen=True, kw_only=True)
class ExaoneConfig(LayerConfig):
    """`config.json` of model type `exaone_moe`."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"}
    )

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 2048
    moe_intermediate_size: int = 1024
    n_routed_experts: int = bounded(64, maximum=1024)
    routed_scaling_factor: float = 2.5
    sliding_window: int | None = 4096
    sliding_window_pattern: Any = 4
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        full, default = self.sliding_window_pattern, ["full_attention"] * self.num_hidden_layers
        if self.layer_types is None and self.sliding_window is not None:
            if type(full) is not int or full < 1:  # or a text such as "LLLG", beside `layer_types` that say the same
                raise CheckpointError(
                    f"config.json: sliding_window_pattern is {shown(full)}, not a whole number from 1 up"
                )
            default = every_nth_full(full, self.num_hidden_layers)
        return attention_windows(self.layer_types, default, self.sliding_window)

    @property
    def rotated(self) -> tuple[bool, ...]:
        return tuple(self.sliding_window is None or window > 0 for window in self.windows)


SARVAM_STORED = (
    Fused("word_embeddings", ("embed_tokens",)),
    Fused("attention.query_key_value", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fused("attention.dense", ("self_attn.o_proj",)),
    Fused("attention.query_layernorm", ("self_attn.q_norm",)),
    Fused("attention.key_layernorm", ("self_attn.k_norm",)),
    Named("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"),
)


def glm4_moe(config: GlmConfig, ops: Recorder) -> None:
    """Record the forward pass of `glm4_moe` and `sarvam_moe`."""
    _forward(config, ops, qk_norm=config.use_qk_norm)


def solar_open(config: SolarConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops)


def dots1(config: DotsConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, qk_norm=True, output_bias=config.attention_bias)


def hy_v3(config: HunyuanConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    names = _Names("router.gate", "expert_bias", "shared_mlp")
    _forward(config, ops, names, qk_norm=True, output_bias=config.attention_bias, mlp_bias=config.mlp_bias)


def exaone_moe(config: ExaoneConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops, _Names(correction="e_score_correction_bias"), qk_norm=True)


class _Names(NamedTuple):
    """What the parts of a layer's experts are called."""

    router: str = "gate"
    correction: str = "gate.e_score_correction_bias"
    shared: str = "shared_experts"


_GLM = _Names()


def _forward(
    config: Config,
    ops: Recorder,
    names: _Names = _GLM,
    *,
    qk_norm: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
) -> None:
    attention = Attention(
        ops,
        config,
        config.head_size**-0.5,
        norm=partial(ops.rms_norm, eps=config.rms_norm_eps, size=config.head_size) if qk_norm else None,
        qkv_bias=config.attention_bias,
        output_bias=output_bias,
    )
    router = Router(
        ops,
        config.n_routed_experts,
        config.num_experts_per_tok,
        name=names.router,
        correction=names.correction,
        scoring="sigmoid",
        normalize=config.norm_topk_prob,
        factor=config.routed_scaling_factor,
        groups=config.n_group,
        chosen_groups=config.topk_group,
        group_best=2,
    )
    act, size = activation("hidden_act", config.hidden_act), config.moe_intermediate_size
    experts = Experts(ops, router, size, partial(ops.gated, activation=act))
    shared = GatedMLP(ops, size * config.n_shared_experts, act, bias=mlp_bias)
    sparse = WithShared(ops, experts, shared, names.shared)
    plain = GatedMLP(ops, config.intermediate_size, act, bias=mlp_bias)
    layers: list[FeedForward] = [sparse if is_sparse else plain for is_sparse in config.sparse]
    pre_norm_decoder(ops, config, attention, layers)
