"""Fields of `config.json` as GPT-2 spells them, and those that are built like it: `families/gpt/` has these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from quantkit.models.config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class GptConfig(DecoderConfig):
    """The fields that all of them have; `n_inner` stands for the `intermediate_size` of others."""

    SPELLINGS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "activation_function": "hidden_act",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
        }
    )

    intermediate_size: int = 0
    n_inner: int | None = None
    hidden_act: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5

    @property
    def mlp_columns(self) -> int:
        """Columns between the matrices of an MLP."""
        return self.n_inner or 4 * self.hidden_size
