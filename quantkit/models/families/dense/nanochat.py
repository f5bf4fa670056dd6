"""nanochat: norms without weights, heads that are rotated the other way round and then normalized, capped logits.

Karpathy, "nanochat", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.models.config import DecoderConfig, activation
from quantkit.models.decoder import MLP, Attention, embed, head
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of, rotary
from quantkit.models.stored import Fused


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """`config.json` of model type `nanochat`."""

    hidden_act: str = "relu2"
    attention_bias: bool = False
    final_logit_softcapping: float | None = 15.0


STORED = (Fused("mlp.fc1", ("mlp.up_proj",)), Fused("mlp.fc2", ("mlp.down_proj",)))


def forward(config: Config, ops: Recorder) -> None:
    """Record the forward pass."""

    def norm(x: Value, module: str = "", size: int | None = None) -> Value:
        return ops.rms_norm(x, None, config.rms_norm_eps, size=size)

    def head_norm(heads: Value, module: str) -> Value:
        return norm(heads, size=config.head_size)

    bias, scale = config.attention_bias, config.head_size**-0.5
    attention = Attention(ops, config, scale, norm=head_norm, norm_last=True, qkv_bias=bias, output_bias=bias)
    mlp = MLP(ops, config.intermediate_size, activation("hidden_act", config.hidden_act))
    longest = config.max_position_embeddings
    frequencies, factor = rotary(
        parameters_of(config), head_dim=config.head_size, context_length=longest, text_length=ops.text_length
    )
    angles = ops.rotation(tuple(-frequency for frequency in frequencies), factor)

    h = norm(embed(ops, config))
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = ops.add(h, attention(norm(h), f"{name}.self_attn", rotation=angles))
        h = ops.add(h, mlp(norm(h), f"{name}.mlp"))
    logits = head(ops, config, norm(ops.select(h)))
    if config.final_logit_softcapping is not None:
        ops.softcap(logits, config.final_logit_softcapping)
