"""The architectures that quantkit runs: one file each, named in one table by `config.json`'s `model_type`.

A file holds a `Config`, the fields it understands, and `forward`, which reads like the forward pass and records it as a
program. No file, no kernel and no number is touched here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig
from quantkit.models.families import gemma3, llama, mistral, qwen2, qwen3
from quantkit.models.recorder import Program, Recorder


@dataclass(frozen=True)
class Architecture:
    """How the checkpoints of one `model_type` are configured, and how they compute."""

    config: type[DecoderConfig]
    forward: Callable[[Any, Recorder], None]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gemma3_text": Architecture(gemma3.Config, gemma3.forward),
        "llama": Architecture(llama.Config, llama.forward),
        "mistral": Architecture(mistral.Config, mistral.forward),
        "qwen2": Architecture(qwen2.Config, qwen2.forward),
        "qwen3": Architecture(qwen3.Config, qwen3.forward),
    }
)


def record(config: Mapping[str, Any]) -> Program:
    """Record the forward pass that a `config.json` describes.

    Raises
    ------
    UnsupportedError
        The model type, the rope type, the activation or another field's value is none that quantkit can run.
    CheckpointError
        A field is missing, ill-typed or contradicts another.
    """
    architecture = _architecture(config)
    ops = Recorder()
    architecture.forward(architecture.config.from_dict(config), ops)
    return ops.program()


def context_length(config: Mapping[str, Any]) -> int:
    """Return how many tokens the model was made for, prompt and answer together; raises as `record` does."""
    return _architecture(config).config.from_dict(config).max_position_embeddings


def _architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json: model_type is missing; is this a Hugging Face language model?")
    if model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"config.json: model_type {model_type!r} is not supported; supported are {supported}")
    return ARCHITECTURES[model_type]
