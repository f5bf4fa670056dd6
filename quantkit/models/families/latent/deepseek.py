"""DeepSeek-V2 and V3, and those that are built like them: latent attention, and mixtures of many small experts.

Some experts see all tokens. The others stand in groups: a token goes to experts of its best groups alone. The first
layers have a plain MLP. V2 scores experts by a softmax; V3 by the logistic function, corrected for the choice by a bias
that keeps their load even. GLM and A.X K1 may name the layers that have experts, and A.X K1 normalizes what experts
give; Youtu has none at all.

DeepSeek-AI, "DeepSeek-V2", 2024, and "DeepSeek-V3 Technical Report", 2024. Liu et al., "Muon is Scalable for LLM
Training" (Moonlight), 2025. Tencent, "Youtu-LLM", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import activation, bounded, shown
from quantkit.models.decoder import Experts, FeedForward, GatedMLP, Norm, Router, WithShared, embed, head
from quantkit.models.decoder.latent_attention import LatentAttention, LatentConfig, rotation
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class YoutuConfig(LatentConfig):
    """`config.json` of model type `youtu`."""

    max_position_embeddings: int = 131_072
    tie_word_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(LatentConfig):
    """The fields that all mixtures have."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"}
    )
    scorings: ClassVar[tuple[str, ...]] = ("sigmoid",)
    methods: ClassVar[tuple[str, ...]] = ("noaux_tc",)

    moe_intermediate_size: int
    n_routed_experts: int = bounded(maximum=1024)
    n_shared_experts: int | None = bounded(1, minimum=0)
    num_experts_per_tok: int
    n_group: int | None = None
    topk_group: int | None = None
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int | None = bounded(1, minimum=0)
    moe_layer_freq: int = 1
    scoring_func: str | None = None
    topk_method: str | None = None

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts, not a plain MLP."""
        return tuple(layer >= (self.first_k_dense_replace or 0) for layer in range(self.num_hidden_layers))

    def check_routing(self) -> None:
        """Raise `UnsupportedError` where experts are chosen in a way that the family does not have."""
        supported = {"scoring_func": self.scorings, "topk_method": self.methods, "moe_layer_freq": (1,)}
        for name, values in supported.items():
            if getattr(self, name) not in (None, *values):
                known = " and ".join(map(str, values))
                raise UnsupportedError(f"config.json: {name} is {shown(getattr(self, name))}; supported are {known}")


@dataclass(frozen=True, kw_only=True)
class V2Config(ExpertsConfig):
    """`config.json` of model type `deepseek_v2`, of which no model normalizes the weights of a token's experts."""

    scorings: ClassVar[tuple[str, ...]] = ("softmax",)
    methods: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")

    moe_intermediate_size: int = 1407
    n_routed_experts: int = bounded(64, maximum=1024)
    n_shared_experts: int | None = bounded(2, minimum=0)
    norm_topk_prob: bool = False
    first_k_dense_replace: int | None = bounded(0, minimum=0)
    mlp_bias: bool = False

    def check_routing(self) -> None:
        super().check_routing()
        if self.norm_topk_prob:
            raise UnsupportedError("config.json: norm_topk_prob is true, which no deepseek_v2 of transformers heeds")


@dataclass(frozen=True, kw_only=True)
class V3Config(ExpertsConfig):
    """`config.json` of model type `deepseek_v3`."""

    max_position_embeddings: int = 4096
    moe_intermediate_size: int = 2048
    n_routed_experts: int = bounded(256, maximum=1024)
    num_experts_per_tok: int = 8
    n_group: int | None = 8
    topk_group: int | None = 4
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int | None = bounded(3, minimum=0)


@dataclass(frozen=True, kw_only=True)
class SarvamConfig(V3Config):
    """`config.json` of model type `sarvam_mla`, which has names of its own for two fields and for yarn."""

    ROPE_TYPES: ClassVar[Mapping[str, str]] = MappingProxyType({"deepseek_yarn": "yarn"})
    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**ExpertsConfig.SPELLINGS, "num_shared_experts": "n_shared_experts"}
    )

    q_lora_rank: int | None = None
    n_routed_experts: int = bounded(128, maximum=1024)
    n_group: int | None = 1
    topk_group: int | None = 1
    first_k_dense_replace: int | None = bounded(1, minimum=0)


@dataclass(frozen=True, kw_only=True)
class LayersConfig(ExpertsConfig):
    """The fields of those that may name the layers that have experts."""

    mlp_layer_types: list[Any] | None = None

    @property
    def sparse(self) -> tuple[bool, ...]:
        kinds = self.mlp_layer_types
        if kinds is None:
            return super().sparse
        if len(kinds) != self.num_hidden_layers or any(kind not in ("dense", "sparse") for kind in kinds):
            raise CheckpointError(
                f"config.json: mlp_layer_types is {shown(kinds)}, not dense or sparse for each of "
                f"{self.num_hidden_layers} layers"
            )
        return tuple(kind == "sparse" for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class AxK1Config(LayersConfig):
    """`config.json` of model type `axk1`."""

    max_position_embeddings: int = 32_768
    moe_intermediate_size: int = 2048
    n_routed_experts: int = bounded(192, maximum=1024)
    num_experts_per_tok: int = 8
    n_group: int | None = 8
    topk_group: int | None = 4
    routed_scaling_factor: float = 2.5


@dataclass(frozen=True, kw_only=True)
class Glm4MoeLiteConfig(LayersConfig):
    """`config.json` of model type `glm4_moe_lite`."""

    max_position_embeddings: int = 202_752
    rms_norm_eps: float = 1e-5
    q_lora_rank: int | None = 768
    qk_nope_head_dim: int = 192
    v_head_dim: int | None = 256
    moe_intermediate_size: int = 1536
    n_routed_experts: int = bounded(64, maximum=1024)
    num_experts_per_tok: int = 4
    routed_scaling_factor: float = 1.8


def youtu(config: YoutuConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))
    _forward(config, ops, [mlp] * config.num_hidden_layers)


def deepseek_v2(config: V2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    grouped = config.topk_method == "group_limited_greedy"
    groups, chosen = (config.n_group or 1, config.topk_group or 1) if grouped else (1, 1)
    router = {"scoring": "softmax", "groups": groups, "chosen_groups": chosen}
    _mixture(config, ops, router, mlp_bias=config.mlp_bias)


def deepseek_v3(config: ExpertsConfig, ops: Recorder) -> None:
    """Record the forward pass of DeepSeek-V3 and of those that are built alike."""
    _mixture(config, ops, _v3_router(config))


def axk1(config: AxK1Config, ops: Recorder) -> None:
    """Record the forward pass."""

    def post_norm(x: Value, module: str) -> Value:
        return ops.rms_norm(x, f"{module.rpartition('.')[0]}.post_mlp_layernorm", config.rms_norm_eps)

    _mixture(config, ops, _v3_router(config), post_norm=post_norm)


def _v3_router(config: ExpertsConfig) -> dict[str, Any]:
    groups = {"groups": config.n_group or 1, "chosen_groups": config.topk_group or 1, "group_best": 2}
    router = {"scoring": "sigmoid", "correction": "gate.e_score_correction_bias"}
    return router | groups


def _mixture(
    config: ExpertsConfig,
    ops: Recorder,
    routing: Mapping[str, Any],
    *,
    mlp_bias: bool = False,
    post_norm: Norm = lambda x, module: x,
) -> None:
    config.check_routing()
    router = Router(
        ops,
        config.n_routed_experts,
        config.num_experts_per_tok,
        normalize=config.norm_topk_prob,
        factor=config.routed_scaling_factor,
        **routing,
    )
    act, size = activation("hidden_act", config.hidden_act), config.moe_intermediate_size
    experts = Experts(ops, router, size, partial(ops.gated, activation=act))
    shared = GatedMLP(ops, size * (config.n_shared_experts or 0), act, bias=mlp_bias)
    mixture = WithShared(ops, experts, shared) if shared.size else experts
    plain = GatedMLP(ops, config.intermediate_size, act, bias=mlp_bias)

    def sparse(x: Value, module: str) -> Value:
        return post_norm(mixture(x, module), module)

    _forward(config, ops, [sparse if is_sparse else plain for is_sparse in config.sparse])


def _forward(config: LatentConfig, ops: Recorder, layers: list[FeedForward]) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention, angles = LatentAttention(ops, config), rotation(ops, config)
    h = embed(ops, config)
    for layer, feed_forward in enumerate(layers):
        name = f"model.layers.{layer}"
        h = ops.add(h, attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", angles))
        h = ops.add(h, feed_forward(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "model.norm"))
