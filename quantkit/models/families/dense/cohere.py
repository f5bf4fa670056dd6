"""Command R and its successors: attention and MLP read the same normalized input, side by side.

Norms subtract the mean and have no bias; neighbouring channels of a head are rotated together; the logits are scaled.
Command R+ normalizes each head of queries and keys, with weights of its own. Command R7B and Command A see a window in
three of four layers, and leave the heads of the fourth, which sees all, unrotated. Command A+ has mixtures of experts
behind its first layers, whose heads turn in any case if all of them see all.

Cohere, "Command R", 2024, and "Command A: An Enterprise-Ready Large Language Model", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.errors import UnsupportedError
from quantkit.models.config import (
    DecoderConfig,
    activation,
    attention_windows,
    bounded,
    checked_layers,
    every_nth_full,
    shown,
)
from quantkit.models.decoder import (
    Attention,
    Experts,
    FeedForward,
    GatedMLP,
    Norm,
    Router,
    WithShared,
    embed,
    head,
    rotation,
)
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """The fields that both have."""

    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    logit_scale: float = 0.0625


@dataclass(frozen=True, kw_only=True)
class CohereConfig(Config):
    """`config.json` of model type `cohere`."""

    default_theta: ClassVar[float] = 500_000.0

    use_qk_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class Cohere2Config(Config):
    """`config.json` of model type `cohere2`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"position_embedding_type", "rotary_pct"})

    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    layer_types: list[Any] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        default = every_nth_full(self.sliding_window_pattern, self.num_hidden_layers)
        return attention_windows(self.layer_types, default, self.sliding_window)

    @property
    def rotated(self) -> tuple[bool, ...]:
        return tuple(window > 0 for window in self.windows)


@dataclass(frozen=True, kw_only=True)
class Cohere2MoeConfig(Cohere2Config):
    """`config.json` of model type `cohere2_moe`; its norms are RMSNorms if it says `rms_norm_eps`."""

    head_dim: int | None = 128
    rms_norm_eps: float | None = None  # type: ignore[assignment]
    num_experts: int = bounded(8, maximum=1024)
    num_experts_per_tok: int = 2
    num_shared_experts: int = bounded(0, minimum=0)
    shared_expert_combination_strategy: str = "average"
    expert_selection_fn: str = "softmax"
    norm_topk_prob: bool = True
    first_k_dense_replace: int | None = bounded(0, minimum=0)
    mlp_layer_types: list[Any] | None = None
    prefix_dense_intermediate_size: int | None = None
    prefix_dense_sliding_window_pattern: int = 1

    @property
    def windows(self) -> tuple[int, ...]:
        first = min(self.first_k_dense_replace or 0, self.num_hidden_layers)
        rest = every_nth_full(self.sliding_window_pattern, self.num_hidden_layers - first)
        default = every_nth_full(self.prefix_dense_sliding_window_pattern, first) + rest
        return attention_windows(self.layer_types, default, self.sliding_window)

    @property
    def rotated(self) -> tuple[bool, ...]:
        forced = self.prefix_dense_sliding_window_pattern == 1
        return tuple(
            window > 0 or (forced and not is_sparse)
            for window, is_sparse in zip(self.windows, self.sparse, strict=True)
        )

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Whether each layer has experts, not a plain MLP."""
        layers, first = self.num_hidden_layers, self.first_k_dense_replace or 0
        default = ["dense" if layer < first else "sparse" for layer in range(layers)]
        kinds = default if self.mlp_layer_types is None else self.mlp_layer_types
        return tuple(kind == "sparse" for kind in checked_layers(kinds, ("dense", "sparse"), layers, "mlp_layer_types"))


_SCORINGS = {"softmax": "softmax_of_chosen", "sigmoid": "sigmoid"}
"""How experts are weighed -> how the recorder calls it."""
_SHARES = {"average": 0.5, "sum": 1.0}
"""What becomes of chosen and shared experts -> the factor of their sum."""


def cohere(config: CohereConfig, ops: Recorder) -> None:
    """Record the forward pass."""

    def head_norm(heads: Value, module: str) -> Value:
        size = config.head_size
        shape = (heads.columns // size, size)
        return ops.layer_norm(heads, module, config.layer_norm_eps, size=size, weight_shape=shape)

    _forward(config, ops, head_norm if config.use_qk_norm else None)


def cohere2(config: Cohere2Config, ops: Recorder) -> None:
    """Record the forward pass."""
    _forward(config, ops)


def cohere2_moe(config: Cohere2MoeConfig, ops: Recorder) -> None:
    """Record the forward pass."""
    act = activation("hidden_act", config.hidden_act)
    plain = GatedMLP(ops, config.prefix_dense_intermediate_size or config.intermediate_size, act)
    sparse = _experts(config, ops, act)
    eps = config.rms_norm_eps
    norm = None if eps is None else partial(ops.rms_norm, eps=eps)
    _forward(config, ops, norm=norm, mlps=[sparse if is_sparse else plain for is_sparse in config.sparse])


def _experts(config: Cohere2MoeConfig, ops: Recorder, act: str) -> FeedForward:
    scoring = _one_of("expert_selection_fn", config.expert_selection_fn, _SCORINGS)
    share = _one_of("shared_expert_combination_strategy", config.shared_expert_combination_strategy, _SHARES)
    router = Router(
        ops,
        config.num_experts,
        config.num_experts_per_tok,
        scoring=scoring,
        normalize=config.norm_topk_prob and scoring == "sigmoid",
    )
    experts = Experts(ops, router, config.intermediate_size, partial(ops.gated, activation=act))
    if not config.num_shared_experts:
        return experts
    shared = GatedMLP(ops, config.intermediate_size * config.num_shared_experts, act)
    both = WithShared(ops, experts, shared)
    return lambda x, module: ops.scale(both(x, module), share)


def _one_of(field: str, value: str, known: Mapping[str, Any]) -> Any:
    """Return what a field's value stands for; raises `UnsupportedError` where it is unknown."""
    if value not in known:
        raise UnsupportedError(f"config.json: {field} is {shown(value)}; supported are {' and '.join(known)}")
    return known[value]


def _forward(
    config: Config,
    ops: Recorder,
    head_norm: Norm | None = None,
    norm: Norm | None = None,
    mlps: Sequence[FeedForward] | None = None,
) -> None:
    norm = norm or partial(ops.layer_norm, eps=config.layer_norm_eps)
    attention = Attention(
        ops,
        config,
        scale=config.head_size**-0.5,
        norm=head_norm,
        interleaved=True,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
    )
    plain = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))
    mlps = mlps or [plain] * config.num_hidden_layers

    angles = rotation(ops, config, parameters_of(config))
    h = embed(ops, config)
    for layer, (mlp, window, rotated) in enumerate(zip(mlps, config.windows, config.rotated, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        attended = attention(x, f"{name}.self_attn", rotation=angles if rotated else None, window=window)
        h = ops.add(ops.add(h, attended), mlp(x, f"{name}.mlp"))
    logits = head(ops, config, norm(ops.select(h), "model.norm"))
    ops.scale(logits, config.logit_scale)
