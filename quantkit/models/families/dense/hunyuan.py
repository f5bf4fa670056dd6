"""Hunyuan: Llama whose query and key heads are normalized after they are rotated, not before; dense, or with experts.

Its configs stretch the base of rotary embedding by `alpha`, under the name of the rope type `dynamic`.

Tencent Hunyuan Team, "Hunyuan-Large", 2024, and "Hunyuan Dense Models", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, activation, bounded, is_positive, shown
from quantkit.models.decoder import Attention, Experts, FeedForward, GatedMLP, Router, WithShared, pre_norm_decoder
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `hunyuan_v1_dense`, whose heads have norms whatever the config says.

    Configs may count one expert, which is the MLP.
    """

    IGNORED: ClassVar[frozenset[str]] = frozenset({"use_qk_norm", "qk_norm", "num_experts"})

    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    @property
    def rope(self) -> dict[str, Any]:
        """Rope parameters, where an `alpha` has become part of the base, as in NTK-aware scaling."""
        parameters = parameters_of(self)
        alpha = parameters.get("alpha")
        if parameters.get("rope_type") != "dynamic" or not alpha:
            return parameters
        for name in ("alpha", "rope_theta"):
            if not is_positive(parameters[name]):
                value = shown(parameters[name])
                raise CheckpointError(f"config.json: the rope parameter {name} is {value}, not a positive number")
        base = parameters["rope_theta"] * alpha ** (self.head_size / (self.head_size - 2))
        return {"rope_theta": base, "partial_rotary_factor": parameters.get("partial_rotary_factor", 1)}


@dataclass(frozen=True, kw_only=True)
class MoeConfig(Config):
    """`config.json` of model type `hunyuan_v1_moe`: one expert more sees all tokens, whatever the config says of it."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"use_qk_norm", "qk_norm", "num_shared_expert", "use_mixed_mlp_moe"})

    num_experts: int = bounded(1, maximum=1024)
    moe_topk: Any = 1
    moe_intermediate_size: Any = None

    @property
    def top_k(self) -> tuple[int, ...]:
        """How many experts a token goes to, in each layer."""
        return self._each("moe_topk", self.moe_topk)

    def check_sizes(self) -> None:
        """Raise unless every expert has the size of an MLP, as in transformers."""
        sizes = self.intermediate_size if self.moe_intermediate_size is None else self.moe_intermediate_size
        if set(self._each("moe_intermediate_size", sizes)) != {self.intermediate_size}:
            raise UnsupportedError(
                f"config.json: moe_intermediate_size is {shown(sizes)}, but intermediate_size {self.intermediate_size}"
            )

    def _each(self, name: str, value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, list) else [value] * self.num_hidden_layers
        if len(values) < self.num_hidden_layers or any(type(one) is not int or one < 1 for one in values):
            raise CheckpointError(
                f"config.json: {name} is {shown(value)}, not a whole number from 1 up for all layers or for each"
            )
        return tuple(values[: self.num_hidden_layers])


def dense(config: Config, ops: Recorder) -> None:
    """Record the forward pass of `hunyuan_v1_dense`."""
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))
    _forward(config, ops, [mlp] * config.num_hidden_layers)


def moe(config: MoeConfig, ops: Recorder) -> None:
    """Record the forward pass of `hunyuan_v1_moe`."""
    config.check_sizes()
    act = activation("hidden_act", config.hidden_act)
    shared, gated = GatedMLP(ops, config.intermediate_size, act), partial(ops.gated, activation=act)
    routers = (Router(ops, config.num_experts, top_k, name="gate.wg") for top_k in config.top_k)
    experts = (Experts(ops, router, config.intermediate_size, gated) for router in routers)
    _forward(config, ops, [WithShared(ops, one, shared, "shared_mlp") for one in experts])


def _forward(config: Config, ops: Recorder, layers: Sequence[FeedForward]) -> None:
    norm = partial(ops.rms_norm, eps=config.rms_norm_eps)
    attention = Attention(
        ops,
        config,
        scale=config.head_size**-0.5,
        norm=partial(norm, size=config.head_size),
        norm_names=("query_layernorm", "key_layernorm"),
        norm_last=True,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
    )
    pre_norm_decoder(ops, config, attention, layers, rope=config.rope)
