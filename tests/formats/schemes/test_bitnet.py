"""BitNet: bytes typed by hand, and checkpoints as they are published, packed and as training keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import stored_parts
import tiny
from golden.generate import shapes, token_ids
from quantkit import formats
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.packed import PackedModel
from quantkit.formats.schemes.bitnet import Bitnet
from quantkit.generation.loading import load_model
from quantkit.quantization.conversion import convert
from quantkit.tensor import Tensor
from quantkit_kernels.blocks import dequantize as numbers_of

AUTO = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = AUTO | {"quantization_mode": "online"}
DTYPES = {"B": "U8", "H": "BF16", "e": "F16", "f": "F32"}
Tensors = dict[str, tuple[str, NDArray[Any]]]


def decoded(scheme: Bitnet, *arrays: NDArray[Any], rows: slice = slice(None)) -> NDArray[np.float32]:
    """The numbers of a matrix that is stored in these parts."""
    stored = zip(("x_proj.weight", "x_proj.weight_scale"), arrays, strict=False)
    return stored_parts.decoded(
        scheme, {name: (DTYPES[array.dtype.char], array) for name, array in stored}, wanted=rows
    )


def test_bytes_typed_by_hand() -> None:
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    ternary = np.array([[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]], np.float32)
    scale = np.array([0x40A0], np.uint16)  # 5 as bf16
    np.testing.assert_array_equal(decoded(Bitnet(), packed, scale), ternary * 5)
    np.testing.assert_array_equal(decoded(Bitnet(divides=True), packed, np.array([4], np.float16)), ternary / 4)
    np.testing.assert_array_equal(decoded(Bitnet(), packed, scale, rows=slice(3, 6)), ternary[3:6] * 5)


def test_weights_of_training_are_rounded_by_their_mean() -> None:
    weights = np.array([[1.0, -1.25, 2.5, -0.25], [0.5, 3.0, 0.0, 1.5]], np.float32)  # the mean of sizes is 1.25
    expected = np.array([[1.25, -1.25, 1.25, 0], [0, 1.25, 0, 1.25]], np.float32)
    bits = tiny.encode_dtype(weights, "BF16")
    np.testing.assert_array_equal(decoded(Bitnet(online=True), bits), expected)
    np.testing.assert_array_equal(decoded(Bitnet(online=True), bits, rows=slice(1, 2)), expected[1:])
    assert not decoded(Bitnet(online=True), np.zeros((2, 2), np.float32)).any()


@pytest.mark.live
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_of_training_are_those_of_transformers(seed: int) -> None:
    import torch
    from transformers.integrations.bitnet import WeightQuant

    weights = np.random.default_rng(seed).standard_normal((64, 48)).astype(np.float32)
    quantize = getattr(WeightQuant.forward, "_torchdynamo_orig_callable", WeightQuant.forward)
    theirs = quantize(None, torch.from_numpy(weights)).numpy()
    np.testing.assert_allclose(decoded(Bitnet(online=True), weights), theirs, rtol=1e-6)


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """The same model twice: with packed matrices, as published, and with their numbers in f32."""
    plain: Tensors = {}
    packed: Tensors = {}
    for number, (name, shape) in enumerate(shapes("bitnet").items()):
        if name.endswith("_proj.weight"):
            codes = np.random.default_rng(number).choice(3, shape, p=[0.3, 0.4, 0.3]).astype(np.uint8)
            quarters = codes.reshape(4, -1, shape[1])
            scale = tiny.encode_dtype(np.array([shape[1] ** -0.5], np.float32), "BF16")
            bytes_ = sum(quarter << 2 * place for place, quarter in enumerate(quarters))
            packed |= {name: ("U8", np.asarray(bytes_)), f"{name}_scale": ("BF16", scale)}
            plain[name] = ("F32", (codes - np.float32(1)) * numbers_of("bf16", scale, None, (1,)))
        else:
            plain[name] = packed[name] = ("F32", tiny.weight(name, shape))
    for kind, tensors, quantization in (("plain", plain, ...), ("packed", packed, AUTO)):
        tiny.checkpoint(folder / kind, "bitnet", tensors={}, quantization_config=quantization)
        tiny.write_safetensors(folder / kind / "model.safetensors", tensors)
    return folder / "plain", folder / "packed"


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(path, threads=1, kv_dtype="f32")
    try:
        return model(token_ids(320))
    finally:
        model.close()


def test_a_packed_checkpoint_is_the_model_with_its_numbers(tmp_path: Path) -> None:
    plain, packed = checkpoints(tmp_path)
    source = formats.open(packed)
    assert "quantization_config" not in source.config
    assert set(source.names) == set(shapes("bitnet"))
    np.testing.assert_array_equal(logits(packed), logits(plain))


def test_four_bits_are_exact(tmp_path: Path) -> None:
    _, source = checkpoints(tmp_path)
    convert(source, tmp_path / "int4", "int4")
    packed, exact = PackedModel(tmp_path / "int4"), formats.open(source)
    for name in (name for name in packed.names if name.endswith("_proj.weight")):
        tensor: Tensor = packed.tensor(name)
        assert tensor.kind == "int4"
        numbers = numbers_of(tensor.kind, tensor.data, tensor.row_scales, tensor.shape)
        np.testing.assert_allclose(numbers, exact.tensor(name).data, rtol=0, atol=2e-7)


def test_online_checkpoints_are_rounded_when_they_are_read(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, "bitnet", tensors=shapes("bitnet"), quantization_config=ONLINE)
    source = formats.open(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.spec(name).kind == "f32"
    assert len(np.unique(source.tensor(name).data)) == 3
    assert source.spec("model.embed_tokens.weight").kind == "bf16"
    assert np.isfinite(logits(tmp_path)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_class": "other"}, "linear_class 'other' and quantization_mode 'offline' are not supported"),
        ({"quantization_mode": 3}, "quantization_mode 3 are not supported"),
        ({"use_rms_norm": True}, "use_rms_norm is True, which is not supported"),
        ({"modules_to_not_convert": ["mlp"]}, r"modules_to_not_convert is \['mlp'\], which is not supported"),
    ],
)
def test_other_variants_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, "bitnet", tensors={}, quantization_config=AUTO | change)
    with pytest.raises(UnsupportedError, match=rf"config\.json: quantization_config: .*{message}"):
        formats.open(tmp_path)


@pytest.mark.parametrize(
    ("weight", "scale", "message"),
    [
        (np.zeros((4, 4), np.float32), np.ones(1, np.float32), r"its weights are F32 of shape \(4, 4\)"),
        (np.zeros(4, np.uint8), np.ones(1, np.float32), r"its weights are U8 of shape \(4,\)"),
        (np.zeros((4, 4), np.uint8), np.ones(4, np.float32), r"its scale is F32 of shape \(4,\), not one number"),
        (np.zeros((4, 4), np.uint8), np.ones(1, np.uint8), r"its scale is U8 of shape \(1,\), not one number"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    weight: NDArray[Any], scale: NDArray[Any], message: str, tmp_path: Path
) -> None:
    tiny.checkpoint(tmp_path, "bitnet", tensors={}, quantization_config=AUTO)
    labels = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}
    parts = {"x_proj.weight": weight, "x_proj.weight_scale": scale}
    stored = {name: (labels[array.dtype], array) for name, array in parts.items()}
    tiny.write_safetensors(tmp_path / "model.safetensors", stored)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor 'x_proj\.weight' .*{message}"):
        formats.open(tmp_path).spec("x_proj.weight")


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, "bitnet", tensors={}, quantization_config=AUTO)
    tiny.write_safetensors(tmp_path / "model.safetensors", {"x_proj.weight": ("U8", np.zeros((4, 4), np.uint8))})
    with pytest.raises(CheckpointError, match=r"tensor 'x_proj\.weight' has dtype U8"):
        formats.open(tmp_path).spec("x_proj.weight")
