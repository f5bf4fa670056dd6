"""GPTQ: typed words, all widths, both versions of zeros, columns in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.gptq import BITS, Gptq
from stored_parts import Stored, decoded

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
GROUP = 32
Weights = NDArray[np.float32]


def words_of(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes along the last axis -> one stream of bits, in words."""
    stream = (codes[..., np.newaxis] >> np.arange(bits, dtype=np.uint8) & 1).reshape(*codes.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little").view(np.int32)


def encoded(weight: Weights, bits: int, less: int, groups: NDArray[np.int32]) -> tuple[Stored, Weights]:
    """The parts of a matrix whose columns are of these groups, and the numbers that they stand for."""
    scales, zeros = np.empty((2, len(np.unique(groups)), len(weight)), np.float32)
    for group in range(len(scales)):
        columns = weight[:, groups == group]
        scales[group] = ((columns.max(1) - columns.min(1)) / (2**bits - 1)).astype(np.float16)
        zeros[group] = np.rint(-columns.min(1) / scales[group]).clip(less, 2**bits - 1)
    codes = np.rint(weight / scales.T[:, groups] + zeros.T[:, groups]).clip(0, 2**bits - 1)
    parts: dict[str, tuple[str, NDArray[Any]]] = {
        ".qweight": ("I32", np.ascontiguousarray(words_of(codes.astype(np.uint8), bits).T)),
        ".qzeros": ("I32", words_of((zeros - less).astype(np.uint8), bits)),
        ".scales": ("F16", scales.astype(np.float16)),
        ".g_idx": ("I32", groups),
    }
    return parts, (codes.astype(np.float32) - zeros.T[:, groups]) * scales.T[:, groups]


def test_typed_words() -> None:
    eight = np.full((1, 8), 0x76543210, np.int32)  # each of eight rows has the codes 0 to 7
    zeros, scales = np.array([[0x76543210]], np.int32), np.full((1, 8), 0.5, np.float16)
    stored: Stored = {".qweight": ("I32", eight), ".qzeros": ("I32", zeros), ".scales": ("F16", scales)}
    numbers = decoded(Gptq(4), stored)
    assert numbers.tolist() == [[(code - zero - 1) / 2 for code in range(8)] for zero in range(8)]
    assert decoded(Gptq(4, 0), stored)[0].tolist() == [code / 2 for code in range(8)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("less", [0, 1])
@pytest.mark.parametrize("in_order", [True, False])
def test_every_width(bits: int, less: int, in_order: bool) -> None:
    random = np.random.default_rng(bits)
    weight = random.standard_normal((64, 96)).astype(np.float32)
    groups = np.arange(96, dtype=np.int32) // GROUP
    parts, expected = encoded(weight, bits, less, groups if in_order else random.permutation(groups))
    np.testing.assert_array_equal(decoded(Gptq(bits, less), parts), expected)
    np.testing.assert_array_equal(decoded(Gptq(bits, less), parts, wanted=slice(8, 33)), expected[8:33])
    if in_order:
        np.testing.assert_array_equal(
            decoded(Gptq(bits, less), {name: parts[name] for name in parts if name != ".g_idx"}), expected
        )


def test_a_checkpoint(tmp_path: Path) -> None:
    def encode(module: str, weight: Weights) -> tuple[Stored, Weights]:
        groups = np.random.default_rng(0).permutation(np.arange(weight.shape[1], dtype=np.int32) // GROUP)
        return encoded(weight, 4, 1, groups)

    quantized.assert_equal(*quantized.checkpoints(tmp_path, encode, "quantization_config", CONFIG))


@pytest.mark.parametrize("spoiled", [{"bits": 5}, {"checkpoint_format": "marlin"}, {"dynamic": {"+:.*": {"bits": 8}}}])
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(spoiled))):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


def test_a_group_that_is_not_there() -> None:
    parts, _ = encoded(np.eye(8, 32, dtype=np.float32), 4, 0, np.zeros(32, np.int32))
    with pytest.raises(ValueError, match="group 7"):
        decoded(Gptq(4), {**parts, ".g_idx": ("I32", np.full(32, 7, np.int32))})
