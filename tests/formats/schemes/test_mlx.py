"""MLX: typed words, every width against MLX itself, and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.mlx import BITS, Mlx
from stored_parts import Stored, decoded

CONFIG = {"bits": 4, "group_size": 64}
Weights = NDArray[np.float32]


def encode(module: str, weight: Weights) -> tuple[Stored, Weights]:
    groups = weight.reshape(len(weight), -1, 64)
    biases = groups.min(-1).astype(np.float16)
    scales = ((groups.max(-1) - biases) / 15).astype(np.float16)
    codes = np.rint((groups - biases[..., None]) / scales[..., None]).clip(0, 15)
    eights = codes.reshape(len(weight), -1, 8).astype(np.uint32)
    words = (eights << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    parts: dict[str, tuple[str, NDArray[Any]]] = {
        ".weight": ("U32", words),
        ".scales": ("F16", scales),
        ".biases": ("F16", biases),
    }
    wide = scales[..., None].astype(np.float32), biases[..., None].astype(np.float32)
    return parts, (codes.astype(np.float32) * wide[0] + wide[1]).reshape(weight.shape)


def test_typed_words() -> None:
    words = np.array([[0x76543210]], np.uint32)
    scales, biases = np.array([[0.5]], np.float16), np.array([[-1]], np.float16)
    numbers = decoded(Mlx(8), {".weight": ("U32", words), ".scales": ("F16", scales), ".biases": ("F16", biases)})
    assert numbers.tolist() == [[code / 2 - 1 for code in range(8)]]


@pytest.mark.parametrize("field", ["quantization", "quantization_config"])
def test_a_checkpoint(tmp_path: Path, field: str) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, encode, field, CONFIG))


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


@pytest.mark.parametrize("spoiled", [{"mode": "nvfp4"}, {"model.layers.0.mlp.up_proj": {"bits": 4, "group_size": 32}}])
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"mode|up_proj"):
        scheme_of({"quantization": {**CONFIG, **spoiled}})


def test_parts_that_do_not_fit() -> None:
    ones = ("F16", np.ones((1, 1), np.float16))
    with pytest.raises(ValueError, match="do not fit"):
        decoded(Mlx(64), {".weight": ("U32", np.zeros((1, 7), np.uint32)), ".scales": ones, ".biases": ones})
