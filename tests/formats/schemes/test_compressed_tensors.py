"""compressed-tensors: typed parts, its own library's files, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.compressed_tensors import BITS, CompressedTensors
from scheme_writers import WRITERS, Written, compressed, words_of
from stored_parts import Stored, decoded

PACKED = WRITERS["compressed-tensors"].config
GROUP = PACKED["config_groups"]["group_0"]


def test_typed_parts() -> None:
    scheme = CompressedTensors()
    packed: Stored = {
        ".weight_packed": ("I32", np.array([[0x76543210]], np.int32)),
        ".weight_scale": ("F16", np.array([[2.0]], np.float16)),
    }
    assert decoded(scheme, packed).tolist() == [[2 * (c - 8) for c in range(8)]]
    zeros = np.array([[0x9]], np.int32)  # stands for 1
    assert decoded(scheme, {**packed, ".weight_zero_point": ("I32", zeros)})[0, 0] == -18
    codes, ones = ("U8", np.array([[0x21, 0xF8]], np.uint8)), np.array([[0x40]], np.uint8)  # a scale of 2 in FP8
    nvfp4: Stored = {
        ".weight_packed": codes,
        ".weight_scale": ("F8_E4M3", ones),
        ".weight_global_scale": ("F32", np.array([4], np.float32)),
    }
    assert decoded(scheme, nvfp4).tolist() == [[0.25, 0.5, -0.0, -3.0]]
    mxfp4: Stored = {".weight_packed": codes, ".weight_scale": ("U8", np.array([[128]], np.uint8))}
    assert decoded(scheme, mxfp4).tolist() == [[1, 2, 0, -12]]
    fp8: Stored = {
        ".weight": ("F8_E4M3", np.array([[0x38, 0x40]], np.uint8)),
        ".weight_scale": ("BF16", np.array([0x3F00], np.uint16)),
    }
    assert decoded(scheme, fp8).tolist() == [[0.5, 1.0]]


def test_columns_in_another_order() -> None:
    random = np.random.default_rng(0)
    order = random.permutation(64)
    weight = random.standard_normal((16, 64)).astype(np.float32)
    parts, expected = compressed("", np.ascontiguousarray(weight[:, order]))
    inverse = np.argsort(order)
    codes = parts[".weight_packed"][1].view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    packed = words_of(codes.reshape(16, 64)[:, inverse].astype(np.uint8), 4)
    numbers = decoded(
        CompressedTensors(),
        {**parts, ".weight_packed": ("I32", packed), ".weight_g_idx": ("I32", (inverse // 32).astype(np.int32))},
    )
    np.testing.assert_array_equal(numbers, expected[:, inverse])


@pytest.mark.parametrize(("variant", "kind"), [("compressed-tensors", "int4"), ("compressed-tensors rows", "int8")])
def test_a_checkpoint(tmp_path: Path, variant: str, kind: str) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS[variant]), keeps="_proj", kind=kind)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"format": "marlin-24"},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"config_groups": {"a": GROUP, "b": {"weights": {"num_bits": 5, "type": "int"}}}},
        {"config_groups": {"a": {"weights": {"num_bits": 3}}}},
        {"config_groups": {"a": {"weights": {"num_bits": "4"}}}},
        {"config_groups": {"a": {"weights": {"num_bits": [4]}}}},
        {"config_groups": {"a": {"weights": {"num_bits": 4.0}}}},
        {"config_groups": {"a": {"weights": {"num_bits": 4, "block_structure": [[128], 128]}}}},
    ],
)
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="quantization_config: "):
        scheme_of({"quantization_config": {**PACKED, **spoiled}})


def test_modules_may_differ_in_bits(tmp_path: Path) -> None:
    def mixed(module: str, weight: NDArray[np.float32]) -> Written:
        return compressed(module, weight, bits=8 if "down" in module else 4)

    eight = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "int", "group_size": 32}}
    config = {**PACKED, "config_groups": {"group_0": GROUP, "group_1": eight}}
    keeps = "(?<!down)_proj"
    quantized.assert_equal(*quantized.checkpoints(tmp_path, mixed, config), keeps=keeps)
    parts, _ = compressed("", np.random.default_rng(0).standard_normal((8, 64), np.float32))
    for spoiled in ({}, {".weight_shape": ("I64", np.array([8, 48]))}):
        left: Stored = {name: part for name, part in parts.items() if name != ".weight_shape"} | spoiled
        with pytest.raises(ValueError, match="bits"):
            decoded(CompressedTensors(4, 8), left)


@pytest.mark.live
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_words_that_its_library_packs(bits: int, symmetric: bool) -> None:
    import torch
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    random = np.random.default_rng(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = random.integers(low, high, (40, 32 // bits * 8), np.int8)
    zeros = random.integers(low, high, (40, 2), np.int8)
    scales = random.random((40, 2), np.float32)
    words = pack_to_int32(torch.from_numpy(codes), bits).numpy()
    stored = {".weight_packed": ("I32", words), ".weight_scale": ("F32", scales)}
    if not symmetric:
        packed = pack_to_int32(torch.from_numpy(zeros), bits, packed_dim=0).contiguous().numpy()
        stored[".weight_zero_point"] = ("I32", packed)
    wide = np.repeat(np.zeros_like(zeros) if symmetric else zeros, codes.shape[1] // 2, 1)
    expected = (codes.astype(np.float32) - wide) * np.repeat(scales, codes.shape[1] // 2, 1)
    np.testing.assert_array_equal(decoded(CompressedTensors(bits), stored), expected)
