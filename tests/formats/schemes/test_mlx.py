"""MLX: typed words, every width against MLX itself, and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
import tiny
from quantkit import formats
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.mlx import BITS, Mlx
from quantkit.models.registry import read
from scheme_writers import WRITERS
from stored_parts import Stored, decoded

encode, CONFIG, _ = WRITERS["mlx"]
Weights = NDArray[np.float32]


def test_typed_words() -> None:
    words = np.array([[0x76543210]], np.uint32)
    scales, biases = np.array([[0.5]], np.float16), np.array([[-1]], np.float16)
    numbers = decoded(Mlx(8), {".weight": ("U32", words), ".scales": ("F16", scales), ".biases": ("F16", biases)})
    assert numbers.tolist() == [[code / 2 - 1 for code in range(8)]]
    words = np.array([[0x10, 0, 0, 0xF0000000]], np.uint32)  # codes 0 1 ... 0 15, of which 1 is 0.5 and 15 is -6
    mxfp4 = decoded(Mlx(64), {".weight": ("U32", words), ".scales": ("U8", np.array([[128]], np.uint8))})
    assert mxfp4.tolist() == [[0, 1, *[0] * 29, -12]]
    fp8 = ("U8", np.array([[0x38, 0x40]], np.uint8))  # 1 and 2
    assert decoded(Mlx(64), {".weight": ("U32", words), ".scales": fp8}).tolist() == [[0, 0.5, *[0] * 29, -12]]


@pytest.mark.parametrize("field", ["quantization", "quantization_config"])
@pytest.mark.parametrize(
    ("variant", "kind"), [("mlx", "int4"), ("mlx of five bits", "int5"), ("mlx of six bits", "int6")]
)
def test_a_checkpoint(tmp_path: Path, variant: str, kind: str, field: str) -> None:
    encode, config, _ = WRITERS[variant]
    quantized.assert_equal(*quantized.checkpoints(tmp_path, encode, config, field), keeps="_proj", kind=kind)


@pytest.mark.live
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_mlx_decodes_the_same(bits: int, group_size: int) -> None:
    import mlx.core as mx

    weight = np.random.default_rng(bits).standard_normal((16, 256)).astype(np.float32)
    stored = mx.quantize(mx.array(weight), group_size=group_size, bits=bits)
    words, scales, biases = (np.array(each) for each in stored)
    ours = decoded(Mlx(group_size), {".weight": ("U32", words), ".scales": ("F32", scales), ".biases": ("F32", biases)})
    theirs = np.array(mx.dequantize(*stored, group_size=group_size, bits=bits))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.live
@pytest.mark.parametrize(("mode", "group_size", "bits"), [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_mlx_decodes_floats_the_same(mode: str, group_size: int, bits: int, stack: tuple[int, ...]) -> None:
    import mlx.core as mx

    weight = np.random.default_rng(bits).standard_normal((*stack, 16, 256)).astype(np.float32)
    stored = mx.quantize(mx.array(weight), group_size=group_size, bits=bits, mode=mode)
    words, scales = (np.array(each) for each in stored)
    ours = decoded(Mlx(64), {".weight": ("U32", words), ".scales": ("U8", scales)})
    theirs = np.array(mx.dequantize(*stored, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.live
def test_what_transformers_writes_is_the_same() -> None:
    import torch
    from transformers.integrations.metal_quantization import _affine_dequantize_tensor, _affine_quantize_tensor

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 256), np.float32))
    words, scales, biases = _affine_quantize_tensor(weight, 64, 4)
    stored: Stored = {
        ".weight": ("U32", words.view(torch.int32).numpy().view(np.uint32)),
        ".scales": ("F32", scales.numpy()),
        ".qbiases": ("F32", biases.numpy()),
    }
    scheme = scheme_of({"quantization_config": {"quant_method": "metal", "bits": 4, "group_size": 64}})
    assert isinstance(scheme, Mlx)
    theirs = _affine_dequantize_tensor(words, scales, biases, 64, 4).numpy()
    np.testing.assert_array_equal(decoded(scheme, stored), theirs)


def test_modules_may_differ(tmp_path: Path) -> None:
    def mixed(module: str, weight: Weights) -> tuple[Stored, Weights]:
        if "down" not in module:
            return encode(module, weight)
        codes = np.random.default_rng(0).integers(0, 256, weight.shape, np.uint8)
        scales = np.full((len(weight), weight.shape[1] // 32), 0.01, np.float16)
        parts: Stored = {
            ".weight": ("U32", codes.view(np.uint32)),
            ".scales": ("F16", scales),
            ".biases": ("F16", -scales),
        }
        return parts, codes * np.float32(scales[0, 0]) - np.float32(scales[0, 0])

    own = {f"model.layers.{layer}.mlp.down_proj": {"group_size": 32, "bits": 8} for layer in range(2)}
    config = {**CONFIG, **own, "lm_head": False}
    quantized.assert_equal(*quantized.checkpoints(tmp_path, mixed, config, "quantization"), keeps="(?<!down)_proj")


@pytest.mark.parametrize("spoiled", [{"mode": "int2"}, {"model.up_proj": {"group_size": 0}}, {"group_size": True}])
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"mode 'int2'|of 'model.up_proj'|groups of True"):
        scheme_of({"quantization": {**CONFIG, **spoiled}})


def test_parts_that_do_not_fit() -> None:
    ones = ("F16", np.ones((1, 1), np.float16))
    with pytest.raises(ValueError, match="do not fit"):
        decoded(Mlx(64), {".weight": ("U32", np.zeros((1, 7), np.uint32)), ".scales": ones, ".biases": ones})
    with pytest.raises(ValueError, match="its parts are"):  # no biases
        decoded(Mlx(64), {".weight": ("U32", np.zeros((1, 8), np.uint32)), ".scales": ones})
    with pytest.raises(ValueError, match="do not fit"):
        decoded(
            Mlx(64), {".weight": ("U32", np.zeros((1, 7), np.uint32)), ".scales": ("U8", np.ones((1, 1), np.uint8))}
        )


@pytest.mark.live
@pytest.mark.parametrize(
    "options",
    [{"q_bits": 4, "q_group_size": 64}, {"q_mode": "mxfp4"}, {"q_group_size": 32, "quant_predicate": "mixed_4_6"}],
)
def test_what_mlx_lm_converts_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import convert
    from mlx_lm.utils import load_model

    plain = tiny.checkpoint(tmp_path / "plain", "llama", **quantized.SHAPES)
    convert(str(plain), mlx_path=str(tmp_path / "mlx"), quantize=True, **options)
    source = formats.open(tmp_path / "mlx")
    assert source.check(read(source.config).record().tensors) == []
    model, _ = load_model(tmp_path / "mlx")
    modules = dict(model.named_modules())
    for name in source.names:
        module = modules[name.removesuffix(".weight")]
        if not hasattr(module, "bits"):
            continue
        said = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        floats = () if module.mode != "affine" else (module.scales.astype(mx.float32), module.biases.astype(mx.float32))
        theirs = mx.dequantize(module.weight, *(floats or (module.scales,)), **said, dtype=mx.float32)
        np.testing.assert_allclose(source.tensor(name).data, np.array(theirs), rtol=1e-6, atol=1e-6, err_msg=name)
    assert len({source.spec(name).kind for name in source.names}) == 2
