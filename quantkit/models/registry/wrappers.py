"""Multimodal models, of which quantkit runs the text: where the text model is configured, what its tensors are called.

Every `model_type` is a row of `WRAPPERS`. `text_config` makes the `config.json` that the text model would have by
itself, which its family then reads as any other. Images, videos and sounds are left out: what they add stands beside
the text model, and a prompt without them passes by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError
from quantkit.models.config import shown
from quantkit.models.stored import Fused, Stored


class Wrapper(NamedTuple):
    """One `model_type`.

    Attributes
    ----------
    text : str
        `model_type` of the text model, where its config does not say it.
    tied : bool
        Whether the head is tied to the embedding, where no config says it.
    flat : bool
        Files, or old ones, have the fields of the text model at the top level.
    fixed : Mapping
        Fields of the text model that the whole does not heed, with the values that it has instead.
    stored : tuple of Stored
        What the whole stores in another way than the text model by itself.
    """

    text: str
    tied: bool = False
    flat: bool = False
    fixed: Mapping[str, Any] = MappingProxyType({})
    stored: tuple[Stored, ...] = ()


# As published; transformers saves them the other way.
_QWEN3_STACKS = (
    Fused(
        "mlp.experts.gate_up_proj",
        ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
        transposed=True,
        weight="",
        either_way=True,
    ),
    Fused("mlp.experts.down_proj", ("mlp.experts.*.down_proj",), transposed=True, weight="", either_way=True),
)
_UNSCALED = MappingProxyType({"logit_scale": 1.0})
_BIASED = MappingProxyType({"attention_bias": True})
_NORMALIZED = MappingProxyType({"norm_topk_prob": True})

WRAPPERS: Mapping[str, Wrapper] = MappingProxyType(
    {
        "aria": Wrapper("aria_text"),
        "aya_vision": Wrapper("cohere2", tied=True, fixed=_UNSCALED),
        "cohere2_vision": Wrapper("cohere2", tied=True, fixed=_UNSCALED),
        "deepseek_vl": Wrapper("llama", tied=True),
        "exaone4_5": Wrapper("exaone4"),
        "gemma3": Wrapper("gemma3_text", tied=True),
        "gemma3n": Wrapper("gemma3n_text", tied=True),
        "gemma4": Wrapper("gemma4_text", tied=True),
        "gemma4_unified": Wrapper("gemma4_unified_text", tied=True),
        "glm46v": Wrapper("glm4", fixed=_BIASED),
        "glm4v": Wrapper("glm4", fixed=_BIASED),
        "hyperclovax_vision_v2": Wrapper("hyperclovax", tied=True),
        "idefics2": Wrapper("mistral"),
        "idefics3": Wrapper("llama"),
        "internvl": Wrapper("qwen2", tied=True),
        "janus": Wrapper("llama", tied=True),
        "lfm2_vl": Wrapper("lfm2", tied=True),
        "lfm3_vl": Wrapper("lfm3", tied=True),
        "llama4": Wrapper("llama4_text"),
        "llava": Wrapper("llama"),
        "llava_next": Wrapper("llama"),
        "llava_next_video": Wrapper("llama"),
        "llava_onevision": Wrapper("qwen2"),
        "minicpmv4_6": Wrapper("qwen3_5_text"),
        "minicpmv4_7": Wrapper("qwen3_5_text"),
        "mistral3": Wrapper("mistral", tied=True),
        "ovis2": Wrapper("qwen2", tied=True),
        "phi4_multimodal": Wrapper("phi3", flat=True),
        "qwen2_5_vl": Wrapper("qwen2", flat=True),
        "qwen2_audio": Wrapper("qwen2"),
        "qwen2_vl": Wrapper("qwen2", flat=True),
        "qwen3_5": Wrapper("qwen3_5_text"),
        "qwen3_5_moe": Wrapper("qwen3_5_moe_text"),
        "qwen3_vl": Wrapper("qwen3"),
        "qwen3_vl_moe": Wrapper("qwen3_moe", fixed=_NORMALIZED, stored=_QWEN3_STACKS),
        "smolvlm": Wrapper("llama"),
        "video_llama_3": Wrapper("qwen2"),
        "video_llava": Wrapper("llama"),
        "vipllava": Wrapper("llama"),
        "voxtral": Wrapper("llama"),
    }
)

TEXT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "glm4v_text": "glm4",
        "qwen2_5_vl_text": "qwen2",
        "qwen2_vl_text": "qwen2",
        "qwen3_vl_moe_text": "qwen3_moe",
        "qwen3_vl_text": "qwen3",
    }
)
"""`model_type` of a text model that has no other use -> the family that it is."""

PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model."),
    ("model.text_model.", "model."),
)
"""How names of tensors begin in a checkpoint, and in the program of the text model; the first that fits counts."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        "mistral": {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    }
)
"""What LLaVA and Idefics leave out of the config of their text model, as transformers fills it in."""

_INHERITED = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "transformers_version")
"""Fields that are the text model's too, unless it has them itself."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `config.json` of the text model alone: the same, unless it is part of a multimodal model.

    Raises
    ------
    CheckpointError
        A multimodal model has no text model.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in WRAPPERS:
        return config
    wrapper = WRAPPERS[model_type]
    text = config.get("text_config")
    if text is None and wrapper.flat:
        text = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    if not isinstance(text, Mapping):
        raise CheckpointError(f"config.json: text_config is {shown(text)}, not an object that describes the text model")
    kind = text.get("model_type", wrapper.text)
    if not isinstance(kind, str):
        raise CheckpointError(f"config.json: model_type in text_config is {shown(kind)}, not a text")
    kind = TEXT_TYPES.get(kind, kind)
    inherited = {name: config[name] for name in _INHERITED if name in config}
    merged = {**_DEFAULTS.get(kind, {}), **inherited, **text, "model_type": kind, "tie_word_embeddings": wrapper.tied}
    # Files have it in one place or the other, and there false is often but the default.
    said = [place.get("tie_word_embeddings") for place in (config, text)]
    if told := [value for value in said if value is not None]:
        merged["tie_word_embeddings"] = next((value for value in told if value is not False), False)
    merged |= wrapper.fixed
    merged.pop("vision_config", None)
    return {name: _plain_rope(value) if name.startswith("rope_") else value for name, value in merged.items()}


def _plain_rope(parameters: Any) -> Any:
    """Rope parameters without those of images: a text's positions are the same in time, height and width."""
    if not isinstance(parameters, Mapping):
        return parameters
    plain = {name: value for name, value in parameters.items() if not name.startswith("mrope_")}
    return {name: "default" if value == "mrope" else value for name, value in plain.items()}
