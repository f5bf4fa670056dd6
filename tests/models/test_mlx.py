"""Folders that mlx-lm writes: other names, shapes and numbers, and the same logits as of the folder it converted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import tiny
from golden.generate import CASES, checkpoint, token_ids
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.mlx import rows
from quantkit.quantization.conversion import convert
from quantkit_kernels.blocks import dequantize

Arrays = dict[str, NDArray[np.float32]]

WRITTEN = {
    "deepseek_v2": "switch_mlp",
    "deepseek_v3": "switch_mlp",
    "dots1": "experts",
    "gemma4_text_experts": "experts.switch_glu",
    "glm4_moe": "switch_mlp",
    "granitemoe": "switch_mlp",
    "granitemoehybrid": "switch_mlp",
    "granitemoehybrid_no_experts": "",
    "jamba": "switch_mlp",
    "lfm2_moe": "switch_mlp",
    "minimax_m2": "switch_mlp",
    "mixtral": "switch_mlp",
    "nemotron_h": "switch_mlp",
    "olmoe": "switch_mlp",
    "phimoe": "switch_mlp",
    "qwen2_moe": "switch_mlp",
    "qwen3_5_moe_text": "switch_mlp",
    "qwen3_5_text": "",
    "qwen3_moe": "switch_mlp",
    "qwen3_next": "switch_mlp",
    "recurrent_gemma": "",
}
"""Golden case -> how mlx-lm calls a stack of experts."""

_MAMBA = {"intermediate_size": 128, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4}
_NEMOTRON = {**_MAMBA, "mamba_proj_bias": False}
_HYBRID = {"attention_bias": False, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_n_groups": 1}
CONVERTED: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "dbrx": {},
    "deepseek_v2": {},
    "deepseek_v3": {},
    "dots1": {},
    "ernie4_5_moe": {},
    "exaone_moe": {"is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"head_dim": 16},
    "falcon_mamba": _MAMBA,
    "gemma4_text_experts": {},
    "glm4_moe": {"rope_scaling": None},
    "glm4_moe_lite_default_layers": {},
    "gptj": {},
    "granitemoe": {"attention_bias": False},
    "granitemoehybrid": {**_HYBRID, "mamba_proj_bias": False},
    "jamba": {},
    "lfm2": {"block_dim": 64},
    "lfm2_moe": {},
    "mamba": _MAMBA,
    "minimax_m2": {"shared_intermediate_size": 0},
    "mixtral": {},
    "nemotron_h": {"attention_bias": False, "mlp_bias": False, "n_shared_experts": 1, "conv_kernel": 4, **_NEMOTRON},
    "olmoe": {},
    "phimoe": {},
    "qwen3_5_text": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "recurrent_gemma": {},
    "solar_open": {},
}
"""Golden case -> what mlx-lm asks a `config.json` for, though transformers does not."""
REFUSED = {
    "ernie4_5_moe": "leaves out the biases by which experts are chosen",
    "falcon_h1": "multiplies the multipliers of the configuration into the weights",
    "gptj": "renames all tensors",
}
"""Golden case -> why it does not run as mlx-lm writes it."""
TOLERANCE = 3e-5
"""Of logits of up to 10, where norms have lost their last bits to the 1 that is added."""

NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
CONVOLUTION = re.compile(r"(conv1d|conv_1d|conv\.conv)\.weight$")
NORM = re.compile(r"(input_layernorm|post_attention_layernorm|[qk]_norm|model\.norm)\.weight$")
FUSED = re.compile(r"(.*\.)(?:(experts)\.gate_up_proj|(shared_mlp|block_sparse_moe)\.input_linear\.weight)$")
DOWN = re.compile(r"(.*\.)(?:(experts)\.down_proj|(shared_mlp|block_sparse_moe)\.output_linear\.weight)$")


def numbers(folder: Path) -> Arrays:
    source = formats.open(folder)
    tensors = {name: source.tensor(name) for name in source.names}
    return {name: dequantize(it.kind, it.data, None, it.shape) for name, it in tensors.items()}


def sanitized(arrays: Arrays, case: str) -> Arrays:
    """The tensors as mlx-lm's `sanitize` functions leave them."""
    stack, experts, written = WRITTEN[case], dict[str, list[NDArray[np.float32]]](), Arrays()
    for name, array in sorted(
        arrays.items(), key=lambda item: [int(it) if it.isdigit() else 0 for it in item[0].split(".")]
    ):
        if expert := re.fullmatch(r"(.*\.)experts\.\d+\.(\w+)\.weight", name):
            part = NAMES.get(expert[2], expert[2])
            if case == "nemotron_h":
                part = {"up_proj": "fc1", "down_proj": "fc2"}[part]
            experts.setdefault(f"{expert[1]}{stack}.{part}.weight", []).append(array)
        elif (fused := FUSED.match(name)) and (module := stacked(fused, stack)):
            halves = np.split(array, 2, axis=-2)
            written |= {f"{module}.{part}_proj.weight": half for part, half in zip(("gate", "up"), halves, strict=True)}
        elif (down := DOWN.match(name)) and (module := stacked(down, stack)):
            written[f"{module}.down_proj.weight"] = array
        elif name.endswith("kv_b_proj.weight") and case == "deepseek_v3":
            config = tiny.config_of(case, **CASES[case].overrides)
            heads = array.reshape(config["num_attention_heads"], -1, array.shape[-1])
            keys, values = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
            written[name.replace("kv_b_proj", "embed_q")] = keys.swapaxes(1, 2)
            written[name.replace("kv_b_proj", "unembed_out")] = values
        elif CONVOLUTION.search(name):
            written[name] = np.moveaxis(array, 2, 1)
        elif NORM.search(name) and case.startswith(("qwen3_next", "qwen3_5")):
            written[name] = array + np.float32(1)
        elif case == "lfm2_moe":  # whose dense layers have them as well
            written[re.sub(r"\.(w\d)\.", lambda it: f".{NAMES[it[1]]}.", name)] = array
        else:
            written[name] = array
    return written | {name: np.stack(each) for name, each in experts.items()}


def stacked(found: re.Match[str], stack: str) -> str:
    """What mlx-lm calls the module whose matrices are stored as one; nothing where it leaves it."""
    if found[3] == "shared_mlp":
        return "" if stack else f"{found[1]}mlp"
    return f"{found[1]}{stack}" if found[2] else f"{found[1]}{found[3]}.{stack}"


def write(folder: Path, plain: Path, arrays: Arrays, **fields: Any) -> Path:
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    if fields:
        config = {**fields, "text_config": config}
        arrays = {f"language_model.{name}": array for name, array in arrays.items()}
    (folder / "config.json").write_text(json.dumps(config))
    tiny.write_safetensors(folder / "model.safetensors", {name: ("F32", array) for name, array in arrays.items()})
    return folder


def logits(folder: Path) -> NDArray[np.float64]:
    bound = bind(formats.open(folder))
    return reference.logits(bound.program, bound.weights, token_ids(320, 20))


@pytest.mark.parametrize("case", WRITTEN)
def test_the_same_logits(case: str, tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", case, dtype="BF16")  # 1 can be added to its numbers without an error
    arrays = numbers(plain)
    written = sanitized(arrays, case)
    assert {name: array.shape for name, array in written.items()} != {name: it.shape for name, it in arrays.items()}
    wrapper = {"model_type": case.removesuffix("_text")} if case.startswith("qwen3_5") else {}
    np.testing.assert_array_equal(logits(write(tmp_path / "mlx", plain, written, **wrapper)), logits(plain))


def test_norms_of_two_bytes(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", "qwen3_next", dtype="BF16")
    folder = write(tmp_path / "mlx", plain, written := sanitized(numbers(plain), "qwen3_next"))
    norm = "model.layers.0.input_layernorm.weight"
    for dtype in ("F16", "BF16"):
        stored = {name: (dtype, tiny.encode_dtype(array, dtype)) for name, array in written.items()}
        tiny.write_safetensors(folder / "model.safetensors", stored)
        weights = bind(formats.open(folder)).weights
        assert weights.spec(norm).kind == "f32"
        rounded = numbers(folder)[norm] - np.float32(1)
        np.testing.assert_array_equal(weights.tensor(norm).data, rounded)
        np.testing.assert_array_equal(weights.entries(norm, slice(3, 9)), rounded[3:9])


def test_packed_it_is_the_same(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", "qwen3_next", dtype="BF16")
    folder = write(tmp_path / "mlx", plain, sanitized(numbers(plain), "qwen3_next"))
    for name in ("mlx", "plain"):
        tiny.write_tokenizer(tmp_path / name)
        convert(tmp_path / name, tmp_path / f"{name}.packed")
    assert folder != plain
    np.testing.assert_array_equal(logits(tmp_path / "mlx.packed"), logits(tmp_path / "plain.packed"))


def test_a_folder_of_hugging_face_is_read_as_ever(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", "qwen3_next")
    arrays = numbers(plain)
    assert rows("qwen3_next", arrays, lambda name: arrays[name].shape) == ()
    del arrays["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor 'model.layers.1.mlp.experts.2.up_proj.weight'"):
        logits(write(tmp_path / "incomplete", plain, arrays))


def test_a_stack_that_is_missing_or_too_small_is_named(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", "qwen3_moe")
    written = sanitized(numbers(plain), "qwen3_moe")
    stack = "model.layers.1.mlp.switch_mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=f"tensor '{stack}' has shape"):
        logits(write(tmp_path / "small", plain, written | {stack: written[stack][1:]}))
    del written[stack]
    with pytest.raises(CheckpointError, match=f"has no tensor '{stack}'"):
        logits(write(tmp_path / "incomplete", plain, written))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_undone_is_refused(case: str, tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", case)
    arrays = numbers(plain)
    logits(plain)
    written = {
        "ernie4_5_moe": lambda name: (name.replace("experts.0.", "switch_mlp."), arrays[name][np.newaxis]),
        "falcon_h1": lambda name: (name, np.moveaxis(arrays[name], 2, 1) if "conv1d.w" in name else arrays[name]),
        "gptj": lambda name: (name.replace("transformer.", "model."), arrays[name]),
    }[case]
    with pytest.raises(UnsupportedError, match=rf"^config.json: .* '{case}' that mlx-lm .* {REFUSED[case]}, is not"):
        logits(write(tmp_path / "mlx", plain, dict(map(written, arrays))))


def converted(folder: Path, case: str, **options: Any) -> tuple[Path, Path]:
    """Let mlx-lm convert a golden case; returns its folder and mlx-lm's."""
    from mlx_lm import convert

    plain = checkpoint(folder / "plain", case)
    config = CONVERTED[case] | json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config))
    if case.startswith("qwen3_5"):  # which mlx-lm knows as a multimodal model alone
        shutil.move(plain, folder / "text")
        write(plain, folder / "text", numbers(folder / "text"), model_type="qwen3_5", vision_config={})
        tiny.write_tokenizer(plain)
    convert(str(plain), mlx_path=str(folder / "mlx"), dtype="float32", **options)
    return plain, folder / "mlx"


@pytest.mark.live
@pytest.mark.parametrize("case", [case for case in CONVERTED if case not in REFUSED])
def test_what_mlx_lm_converts_has_the_same_logits(case: str, tmp_path: Path) -> None:
    plain, folder = converted(tmp_path, case)
    np.testing.assert_allclose(logits(folder), logits(plain), rtol=0, atol=TOLERANCE)


@pytest.mark.live
@pytest.mark.parametrize("case", REFUSED)
def test_what_mlx_lm_changes_for_good_is_refused(case: str, tmp_path: Path) -> None:
    _, folder = converted(tmp_path, case)
    with pytest.raises(UnsupportedError, match=REFUSED[case]):
        bind(formats.open(folder))


@pytest.mark.live
@pytest.mark.parametrize("case", ["deepseek_v3", "mixtral", "qwen3_5_text", "qwen3_next", "lfm2_moe"])
def test_what_mlx_lm_quantizes_has_its_logits(case: str, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    _, folder = converted(tmp_path, case, quantize=True, q_bits=8, q_group_size=32)
    assert ".scales" in "".join(
        map(str, json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    )
    model, _ = load_model(folder)
    theirs = np.array(model(mx.array([token_ids(320, 20)]))[0].astype(mx.float32))
    np.testing.assert_allclose(logits(folder), theirs, rtol=0, atol=1e-3)
