"""Multimodal models as text only: the same model as its text model by itself, and as transformers has it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from golden import generate as golden
from quantkit import formats
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.packed import PackedModel
from quantkit.generation.loading import load, load_model
from quantkit.models.registry import FAMILIES, read
from quantkit.models.registry.refused import REASONS
from quantkit.models.registry.wrappers import TEXT_TYPES, WRAPPERS
from quantkit.quantization.conversion import convert
from quantkit.quantization.dequantization import dequantize

PROMPT = [(17 * i * i + 5 * i + 3) % 320 for i in range(40)]

Names = dict[str, str]
"""How names of tensors begin in a text model -> how they begin in a multimodal checkpoint of it."""

OLD: Names = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
NEW: Names = {"model.": "model.language_model."}
IDEFICS: Names = {"model.": "model.text_model."}
FLAT: Names = {}

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_VIT = _SIZES | {"image_size": 28, "patch_size": 14, "num_channels": 3}
_CLIP = {"vision_config": _VIT | {"model_type": "clip_vision_model", "projection_dim": 32}}
_SIGLIP = {"vision_config": _VIT | {"model_type": "siglip_vision_model"}}
_QWEN = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
    "patch_size": 14,
    "out_hidden_size": 64,
}
_GLM = _QWEN | {"hidden_size": 64, "image_size": 28, "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}
_AUDIO = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
_PERCEIVER = {
    "resampler_n_latents": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 16,
    "num_key_value_heads": 2,
}

PUBLISHED: dict[str, tuple[Names, str, dict[str, Any]]] = {
    "aria": (OLD, "vision_tower", {"vision_config": _VIT | {"model_type": "idefics3_vision"}}),
    "aya_vision": (OLD, "vision_tower", _SIGLIP),
    "cohere2_vision": (OLD, "vision_tower", _SIGLIP),
    "deepseek_vl": (NEW, "model.vision_model", _SIGLIP),
    "exaone4_5": (NEW, "model.visual", {"vision_config": _QWEN | {"num_key_value_heads": 2}}),
    "gemma3": (OLD, "vision_tower", _SIGLIP | {"mm_tokens_per_image": 4}),
    "gemma3n": (NEW, "model.vision_tower", {"audio_config": {}}),
    "gemma4": (NEW, "model.vision_tower", {"audio_config": None, "vision_config": _VIT | {"num_key_value_heads": 2}}),
    "gemma4_unified": (
        NEW,
        "model.embed_vision",
        {"audio_config": None, "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 64}},
    ),
    "glm46v": (NEW, "model.visual", {"vision_config": _GLM}),
    "glm4v": (NEW, "model.visual", {"vision_config": _GLM}),
    "hyperclovax_vision_v2": (
        NEW,
        "model.vision_model",
        {"vision_config": _QWEN | {"model_type": "qwen2_5_vl_vision"}},
    ),
    "idefics2": (IDEFICS, "model.vision_model", {"vision_config": _VIT, "perceiver_config": _PERCEIVER}),
    "idefics3": (IDEFICS, "model.vision_model", {"vision_config": _VIT, "scale_factor": 1}),
    "internvl": (
        OLD,
        "vision_tower",
        {"vision_config": _VIT | {"image_size": [28, 28], "patch_size": [14, 14]}, "downsample_ratio": 0.5},
    ),
    "janus": (
        NEW,
        "model.vision_model",
        {
            "vision_config": _VIT | {"projection_dim": 64},
            "vq_config": {"base_channels": 32, "projection_dim": 64, "image_token_embed_dim": 64, "num_embeddings": 16},
        },
    ),
    "lfm2_vl": (
        NEW,
        "model.vision_tower",
        {"vision_config": _VIT | {"model_type": "siglip2_vision_model", "num_patches": 4}},
    ),
    "lfm3_vl": (
        NEW,
        "model.vision_tower",
        {"vision_config": _SIZES | {"num_key_value_heads": 2, "layer_types": ["full_attention"]}},
    ),
    "llama4": (
        OLD,
        "vision_model",
        {
            "vision_config": _VIT
            | {
                "model_type": "llama4_vision_model",
                "intermediate_size": 128,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
            }
        },
    ),
    "llava": (OLD, "vision_tower", _CLIP),
    "llava_next": (OLD, "vision_tower", _CLIP),
    "llava_next_video": (OLD, "vision_tower", _CLIP),
    "llava_onevision": (OLD, "vision_tower", _SIGLIP),
    "minicpmv4_6": (NEW, "model.vision_tower", {"vision_config": _VIT, "insert_layer_id": 0}),
    "minicpmv4_7": (NEW, "model.vision_tower", {"vision_config": _VIT, "insert_layer_id": 0}),
    "mistral3": (OLD, "vision_tower", {"vision_config": _VIT | {"model_type": "pixtral", "head_dim": 16}}),
    "ovis2": (NEW, "model.vision_tower", {"vision_config": _VIT | {"vocab_size": 16}, "hidden_size": 64}),
    "phi4_multimodal": (
        FLAT,
        "model.embed_tokens_extend",
        {
            "audio_config": {"hidden_size": 32, "intermediate_size": 64, "num_blocks": 1, "num_attention_heads": 2}
            | {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32},
            "vision_config": _SIZES | {"crop_size": 28, "image_size": 28, "num_hidden_layers": 2},
        },
    ),
    "qwen2_5_vl": (FLAT, "visual", {"vision_config": _QWEN | {"fullatt_block_indexes": [0]}}),
    "qwen2_audio": (OLD, "audio_tower", {"audio_config": _AUDIO}),
    "qwen2_vl": (
        FLAT,
        "visual",
        {"vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}},
    ),
    "qwen3_5": (NEW, "model.visual", {"vision_config": _QWEN | {"num_position_embeddings": 16}}),
    "qwen3_5_moe": (NEW, "model.visual", {"vision_config": _QWEN | {"num_position_embeddings": 16}}),
    "qwen3_vl": (
        NEW,
        "model.visual",
        {"vision_config": _QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}},
    ),
    "qwen3_vl_moe": (
        NEW,
        "model.visual",
        {"vision_config": _QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}},
    ),
    "smolvlm": (IDEFICS, "model.vision_model", {"vision_config": _VIT, "scale_factor": 1}),
    "video_llama_3": (NEW, "model.vision_model", {"vision_config": _VIT}),
    "video_llava": (OLD, "video_tower", _CLIP),
    "vipllava": (OLD, "vision_tower", _CLIP),
    "voxtral": (OLD, "audio_tower", {"audio_config": _SIZES | _AUDIO}),
}
"""How names begin in published checkpoints, where vision or sound begins, and a config of it that is tiny."""

SECTIONS = {
    "glm46v": ("glm4v_text", [2, 1, 1]),
    "glm4v": ("glm4v_text", [2, 1, 1]),
    "qwen2_5_vl": ("qwen2_5_vl_text", [2, 3, 3]),
    "qwen2_vl": ("qwen2_vl_text", [2, 3, 3]),
    "qwen3_vl": ("qwen3_vl_text", [8, 4, 4]),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", [8, 4, 4]),
}
"""What text models are called, and their pairs of channels that turn with time, height and width."""
CASES = dict.fromkeys(("glm46v", "glm4v"), "glm4_biases")
"""Golden cases of text models that differ from the case that is named like their family."""


def case_of(model_type: str) -> str:
    """Return the golden case of a multimodal model's text model."""
    return CASES.get(model_type, WRAPPERS[model_type].text)


def wrapped(model_type: str, **changes: Any) -> dict[str, Any]:
    """The `config.json` of a multimodal model around the tiny one of its text model."""
    text = tiny.config_of(WRAPPERS[model_type].text, **golden.CASES[case_of(model_type)].overrides | changes)
    del text["architectures"]
    if model_type in SECTIONS:
        text["model_type"], sections = SECTIONS[model_type]
        text["rope_scaling"] = {"type": "mrope", "mrope_section": sections}
        if text["model_type"] == "glm4v_text":
            text["rope_scaling"] |= {"type": "default", "partial_rotary_factor": 0.5}
        if model_type.startswith("qwen3_vl"):
            text["rope_scaling"] = {"rope_type": "default", "mrope_interleaved": True} | text["rope_scaling"]
            del text["rope_scaling"]["type"]
    own: dict[str, Any] = {"model_type": model_type, "architectures": ["ForConditionalGeneration"], "text_config": text}
    if model_type == "phi4_multimodal":  # it has no other form
        own = own.pop("text_config") | own
    return own | PUBLISHED[model_type][2]


def checkpoint(folder: Path, config: dict[str, Any], names: Names) -> Path:
    """The tiny checkpoint of a text model, as part of a multimodal one."""
    source = golden.checkpoint(folder, case_of(config["model_type"]))
    tensors = {name: formats.open(source).tensor(name, copy=True).data for name in formats.open(source).names}
    stored = {}
    for name, array in tensors.items():
        meant = next((prefix for prefix in names if name.startswith(prefix)), "")
        stored[names.get(meant, "") + name.removeprefix(meant)] = ("F32", array)
    tower = PUBLISHED[config["model_type"]][1]
    stored |= {f"{tower}.layers.0.mlp.fc{i}.weight": ("F32", np.zeros((4, 4), np.float32)) for i in (1, 2)}
    stored["multi_modal_projector.linear.weight"] = ("F32", np.zeros((4, 4), np.float32))
    tiny.write_safetensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def text_model(folder: Path, model_type: str) -> Path:
    """The tiny checkpoint of a text model by itself, which computes as it does in a multimodal one."""
    golden.checkpoint(folder, case_of(model_type))
    config = json.loads((folder / "config.json").read_text()) | WRAPPERS[model_type].fixed
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(path, threads=1, kv_dtype="f32")
    try:
        return model(PROMPT)
    finally:
        model.close()


def test_every_wrapper_has_a_row() -> None:
    assert PUBLISHED.keys() == WRAPPERS.keys()
    assert {wrapper.text for wrapper in WRAPPERS.values()} | set(TEXT_TYPES.values()) <= FAMILIES.keys()
    assert not WRAPPERS.keys() & FAMILIES.keys()


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_the_text_model_is_the_model_itself(model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = logits(text_model(tmp_path / "plain", model_type))
    tower = PUBLISHED[model_type][1].removeprefix("model.")
    for number, names in enumerate((PUBLISHED[model_type][0], NEW)):
        caplog.clear()
        source = checkpoint(tmp_path / str(number), wrapped(model_type), names)
        np.testing.assert_array_equal(logits(source), expected)
        assert [record.getMessage() for record in caplog.records] == [
            f"{source}: {model_type} runs as text only; left out: {tower}, multi_modal_projector (3 tensors)"
        ]


@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_5_vl", "llava"])
def test_what_is_packed_is_the_text_model(model_type: str, tmp_path: Path) -> None:
    text = WRAPPERS[model_type].text
    source = checkpoint(tmp_path / "source", wrapped(model_type) | {"eos_token_id": [7]}, PUBLISHED[model_type][0])
    report = convert(source, tmp_path / "packed")
    assert len(report.unused) == 3
    convert(golden.checkpoint(tmp_path / "plain", text), tmp_path / "plain-packed")
    packed, plain = PackedModel(tmp_path / "packed"), PackedModel(tmp_path / "plain-packed")
    assert packed.manifest["tensors"] == plain.manifest["tensors"]
    assert packed.config["model_type"] == text
    assert "vision_config" not in packed.config
    dequantize(packed.path, tmp_path / "out")
    assert sorted(formats.open(tmp_path / "out").names) == sorted(golden.shapes(text))
    assert read(formats.open(tmp_path / "out").config).record() == read(tiny.config_of(text)).record()


@pytest.mark.parametrize("transposed", [True, False])
def test_experts_of_qwen3_vl_stand_in_stacks(transposed: bool, tmp_path: Path) -> None:
    expected = logits(text_model(tmp_path / "plain", "qwen3_vl_moe"))
    source = checkpoint(tmp_path / "source", wrapped("qwen3_vl_moe"), NEW)
    opened = formats.open(source)
    tensors = {name: opened.tensor(name, copy=True).data for name in opened.names}
    for layer in {name.rpartition(".experts.")[0] for name in tensors if ".experts." in name}:
        count = len([name for name in tensors if name.startswith(layer) and name.endswith("gate_proj.weight")])
        parts = {
            part: [tensors.pop(f"{layer}.experts.{number}.{part}.weight") for number in range(count)]
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        pairs = zip(parts["gate_proj"], parts["up_proj"], strict=True)
        stacks = {"gate_up_proj": np.stack(list(map(np.concatenate, pairs))), "down_proj": np.stack(parts["down_proj"])}
        for part, stack in stacks.items():
            tensors[f"{layer}.experts.{part}"] = stack.swapaxes(1, 2) if transposed else stack
    tiny.write_safetensors(source / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()})
    np.testing.assert_array_equal(logits(source), expected)
    convert(source, tmp_path / "packed")
    assert PackedModel(tmp_path / "packed").config["model_type"] == "qwen3_moe"
    dequantize(tmp_path / "packed", tmp_path / "out")
    assert sorted(formats.open(tmp_path / "out").names) == sorted(golden.shapes("qwen3_moe"))


def test_tokens_that_end_are_those_of_the_whole(tmp_path: Path) -> None:
    config = wrapped("llava", eos_token_id=...) | {"eos_token_id": 5}
    source = checkpoint(tmp_path / "source", config, OLD)
    (source / "generation_config.json").unlink()
    model, tokenizer = load(source, threads=1)
    model.close()
    assert 5 in tokenizer.eos_token_ids


def test_old_files_of_qwen_have_one_level(tmp_path: Path) -> None:
    config = wrapped("qwen2_5_vl")
    flat = config.pop("text_config") | config
    nested = read(wrapped("qwen2_5_vl"))
    assert read(flat).record() == nested.record()
    both = wrapped("qwen2_5_vl")
    both["text_config"]["rope_parameters"] = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3]}
    del both["text_config"]["rope_scaling"]
    assert read(both).record() == nested.record()


@pytest.mark.parametrize(
    ("outer", "inner", "default", "tied"),
    [
        (..., ..., "gemma3", True),
        (..., ..., "llava", False),
        (False, ..., "gemma3", False),
        (True, False, "llava", True),
        (False, True, "llava", True),
        (None, None, "gemma3", True),
        (False, None, "gemma3", False),
    ],
)
def test_where_ties_are_said(outer: Any, inner: Any, default: str, tied: bool) -> None:
    config = wrapped(default, tie_word_embeddings=inner)
    if outer is not ...:
        config["tie_word_embeddings"] = outer
    assert read(config).config.tie_word_embeddings is tied


def test_llava_leaves_sizes_out() -> None:
    config = read({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}).config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (4096, 11008, 32)
    config = read({"model_type": "llava", "text_config": {"model_type": "mistral"}}).config
    assert (config.vocab_size, config.intermediate_size, config.num_key_value_heads) == (32000, 14336, 8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text_config": None}, CheckpointError, "text_config is None, not an object"),
        ({"text_config": [1]}, CheckpointError, r"text_config is \[1\], not an object"),
        ({"text_config": {"model_type": 3}}, CheckpointError, "model_type in text_config is 3, not a text"),
        (
            {"text_config": {"model_type": "rwkv"}},
            UnsupportedError,
            "'rwkv' of the text model in 'llava' is not supported",
        ),
        ({"text_config": {"model_type": "llama", "hidden_size": "x"}}, CheckpointError, "hidden_size is 'x', not"),
        ({"tie_word_embeddings": "yes"}, CheckpointError, "tie_word_embeddings is 'yes', not true or false"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^config\.json: .*{message}"):
        read(wrapped("llava") | change)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("bert", "is an encoder, which turns a text into numbers and continues none"),
        ("t5", "is an encoder-decoder; quantkit runs decoders alone"),
        ("whisper", "hears or makes sounds; quantkit runs language models"),
        ("clip", "sees or makes images; quantkit runs language models"),
        ("llada", "makes texts by diffusion"),
    ],
)
def test_what_continues_no_text_is_refused_by_name(model_type: str, message: str, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedError, match=rf"^config\.json: model_type '{model_type}' {message}"):
        convert(tmp_path / "model", tmp_path / "out")


def test_an_unknown_encoder_decoder_is_known_by_its_config() -> None:
    with pytest.raises(UnsupportedError, match="model_type 'new' is an encoder-decoder"):
        read({"model_type": "new", "is_encoder_decoder": True})
    assert not REASONS.keys() & (FAMILIES.keys() | WRAPPERS.keys())


UNTRIED = {
    "gemma3n": "transformers makes none without timm, which sees its images",
    "llama4": "transformers 5.24 fails without images: it looks for them in what its text model gives",
}


@pytest.mark.live
@pytest.mark.parametrize("model_type", [name for name in WRAPPERS if name not in UNTRIED])
def test_transformers_answers_the_same(model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForMultimodalLM

    (tmp_path / "config.json").write_text(json.dumps(wrapped(model_type)))
    model = AutoModelForMultimodalLM.from_config(AutoConfig.from_pretrained(tmp_path), attn_implementation="eager")
    model = model.to(torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
            torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, scale, generator=generator)
        expected = model(torch.tensor([PROMPT])).logits[0].numpy()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        answer = logits(tmp_path)
    assert np.abs(answer - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    assert "runs as text only; left out: " in caplog.text
