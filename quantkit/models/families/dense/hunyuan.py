"""Hunyuan, dense: Llama whose query and key heads are normalized after they are rotated, not before.

Its configs stretch the base of rotary embedding by `alpha`, under the name of the rope type `dynamic`.

Tencent Hunyuan Team, "Hunyuan-Large", 2024, and "Hunyuan Dense Models", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig, activation, is_positive, shown
from quantkit.models.decoder import Attention, GatedMLP, embed, head, rotation
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


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""
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
    mlp = GatedMLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))

    angles = rotation(ops, config, config.rope)
    h = embed(ops, config)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = ops.add(h, attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn", rotation=angles))
        h = ops.add(h, mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
    head(ops, config, norm(ops.select(h), "model.norm"))
