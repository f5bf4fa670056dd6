"""Latent attention: the keys and values of all heads are products of one short row for each token, the latent.

A query head has columns that are rotated, behind others that are not. All key heads share their rotated columns, which
come straight from the input; the others, and the values, come from the latent. Values may have another size than keys.

The cache holds keys and values as heads, not latents. Of a token of DeepSeek-V2-Lite those are 5,120 numbers a layer
where the latent and the shared columns are 576, so that from a depth of about 5,000 tokens on, a decode step reads as
many bytes of cache as of weights. In return each (query, position) costs 320 multiply-adds a head instead of 1,088,
which is what a prompt is bound by; attention is that of all families; and the numbers are those of transformers,
which expands latents as well.

DeepSeek-AI, "DeepSeek-V2", 2024. `latent/` has the families that are made of it, `quantkit.models.decoder` the usual
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quantkit.errors import CheckpointError
from quantkit.models.config import DecoderConfig
from quantkit.models.program import Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of, rotary, score_factor
from quantkit.models.stored import Fused

STORED = (Fused("self_attn.kv_b_proj", ("self_attn.k_b_proj", "self_attn.v_b_proj"), groups="num_attention_heads"),)

_NORM_EPS = 1e-6
"""Of the norms of latents, whatever the config says of others."""


@dataclass(frozen=True, kw_only=True)
class LatentConfig(DecoderConfig):
    """The fields that latent attention has in all families.

    `head_dim` and `num_key_value_heads` say nothing: latents make keys and values for all heads.
    """

    hidden_act: str = "silu"
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int | None = 128
    attention_bias: bool = False
    rope_interleave: bool = True

    @property
    def head_size(self) -> int:
        """Channels of one head of queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def value_size(self) -> int:
        """Channels of one head of values."""
        return self.v_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys, and of values: one for each query head."""
        return self.num_attention_heads

    def _check_heads(self) -> None:
        if self.qk_rope_head_dim % 2 or max(self.head_size, self.value_size) > 65_536:
            raise CheckpointError(
                f"config.json: heads of {self.head_size} and {self.value_size} channels, {self.qk_rope_head_dim} of "
                "them rotated, are none: at most 65536, an even number of them rotated"
            )


def rotation(ops: Recorder, config: LatentConfig) -> Value:
    """Cosines and sines of the rotated columns of a head."""
    size, longest = config.qk_rope_head_dim, config.max_position_embeddings
    parameters = parameters_of(config)
    return ops.rotation(*rotary(parameters, head_dim=size, context_length=longest, text_length=ops.text_length))


@dataclass(frozen=True)
class LatentAttention:
    """Causal self-attention by latents: what all layers of a model have in common."""

    ops: Recorder
    config: LatentConfig

    def __call__(self, x: Value, module: str, rotation: Value) -> Value:
        """Record one layer's attention -> `[T, hidden_size]`."""
        ops, config = self.ops, self.config
        heads, bias = config.num_attention_heads, config.attention_bias
        rope = partial(ops.rope, rotation=rotation, interleaved=config.rope_interleave)
        norm = partial(ops.rms_norm, eps=_NORM_EPS)

        q = rope(self._queries(x, module, norm), head_dim=config.head_size, begin=config.qk_nope_head_dim)
        rank, columns = config.kv_lora_rank, config.kv_lora_rank + config.qk_rope_head_dim
        both = ops.linear(x, f"{module}.kv_a_proj_with_mqa", columns, bias=bias)
        latent = norm(ops.slice(both, 0, rank), f"{module}.kv_a_layernorm")
        shared = rope(ops.slice(both, rank, columns))
        k = ops.linear(latent, f"{module}.k_b_proj", heads * config.qk_nope_head_dim)
        v = ops.linear(latent, f"{module}.v_b_proj", heads * config.value_size)
        k = ops.append(k, shared, parts=heads)
        cache = ops.store_kv(k, v, head_dim=config.head_size, v_head_dim=config.value_size)
        scale = config.head_size**-0.5 * score_factor(parameters_of(config))
        x = ops.attention(q, cache, scale=scale)
        return ops.linear(x, f"{module}.o_proj", config.hidden_size, bias=bias)

    def _queries(self, x: Value, module: str, norm: partial[Value]) -> Value:
        ops, config = self.ops, self.config
        if config.q_lora_rank is None:
            return ops.linear(x, f"{module}.q_proj", config.query_columns)
        latent = ops.linear(x, f"{module}.q_a_proj", config.q_lora_rank, bias=config.attention_bias)
        return ops.linear(norm(latent, f"{module}.q_a_layernorm"), f"{module}.q_b_proj", config.query_columns)
