"""FP8: typed bytes, blocks that the edges cut, stacks, and what transformers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.floats.fp8 import Fp8
from scheme_writers import WRITERS
from stored_parts import Stored, decoded

BLOCKS = WRITERS["fp8"].config


def stored(codes: NDArray[np.uint8], scales: NDArray[Any], dtype: str = "F32") -> Stored:
    return {".weight": ("F8_E4M3", codes), ".weight_scale_inv": (dtype, scales)}


def test_typed_bytes() -> None:
    codes = np.array([[0x38, 0xB8, 0x40], [0x30, 0x00, 0x01]], np.uint8)  # 1 -1 2, 0.5 0 2 ** -9
    scales = np.array([[2.0, 4.0]], np.float32)
    expected = [[2, -2, 8], [1, 0, 2.0**-7]]
    assert decoded(Fp8((2, 2)), stored(codes, scales)).tolist() == expected
    assert decoded(Fp8(None), stored(codes, np.array(2.0, np.float32))).tolist()[0] == [2, -2, 4]
    powers = np.array([[128, 129]], np.uint8)
    assert decoded(Fp8((2, 2)), stored(codes, powers, "F8_E8M0")).tolist() == expected


def test_rows_of_blocks_and_matrices_of_stacks() -> None:
    random = np.random.default_rng(0)
    codes, scales = random.integers(0, 127, (300, 70), np.uint8), random.random((3, 1), np.float32)
    whole = decoded(Fp8((128, 128)), stored(codes, scales))
    for rows in (slice(100, 290), slice(256, 300)):
        np.testing.assert_array_equal(decoded(Fp8((128, 128)), stored(codes, scales), wanted=rows), whole[rows])
    stack = decoded(Fp8((128, 128)), stored(np.stack([codes] * 2), np.stack([scales] * 2)))
    np.testing.assert_array_equal(stack[1], whole)


def test_spellings_of_factors() -> None:
    codes = np.array([[0x38, 0xB8], [0x30, 0x40]], np.uint8)  # 1 -1, 0.5 2
    rows, powers = np.array([[2.0], [4.0]], np.float32), np.array([[128, 127], [126, 130]], np.uint8)
    for name in (".weight_scale", ".weight_scale_inv"):
        assert decoded(Fp8(), {".weight": ("F8_E4M3", codes), name: ("F32", rows)}).tolist() == [[2, -2], [2, 8]]
        whole: Stored = {".weight": ("F8_E4M3", codes), name: ("F32", rows[:1, 0]), ".input_scale": ("F32", rows[0])}
        assert decoded(Fp8(), whole).tolist() == [[2, -2], [1, 4]]
    assert decoded(Fp8(), stored(codes, rows[:, 0])).tolist() == [[2, -2], [2, 8]]
    for dtype in ("U8", "F8_E8M0"):
        assert decoded(Fp8(), stored(codes, powers, dtype)).tolist() == [[2, -1], [0.25, 16]]
    experts: Stored = {"up_proj": ("F8_E4M3", codes[np.newaxis]), "up_proj_scale": ("F32", rows.T[np.newaxis])}
    assert decoded(Fp8(), experts).tolist() == [[[2, -4], [1, 8]]]


@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8", "mxfp8"])
def test_names_of_the_method(method: str) -> None:
    assert isinstance(scheme_of({"quantization_config": {"quant_method": method}}), Fp8)


@pytest.mark.parametrize("spoiled", ["weight_block_size", "fmt", "expert_dtype"])
def test_what_is_not_known_is_refused(spoiled: str) -> None:
    with pytest.raises(UnsupportedError, match=spoiled):
        scheme_of({"quantization_config": {**BLOCKS, spoiled: ["e5m2"]}})


def test_scales_that_do_not_fit() -> None:
    codes = np.zeros((4, 4), np.uint8)
    for other in (stored(codes, np.ones((1, 3), np.float32)), stored(codes, np.ones((2, 2), np.int32), "I32")):
        with pytest.raises(ValueError, match="scales"):
            decoded(Fp8((2, 2)), other)


@pytest.mark.parametrize("variant", ["fp8", "fp8 rows"])
def test_a_checkpoint(tmp_path: Path, variant: str) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS[variant]))


@pytest.mark.live
def test_blocks_are_what_transformers_makes_of_them() -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    random = np.random.default_rng(0)
    codes, scales = random.integers(0, 127, (300, 200), np.uint8), random.random((3, 2), np.float32)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    theirs = _dequantize_fp8_weight(weight, torch.from_numpy(scales), [128, 128], torch.float32)
    np.testing.assert_array_equal(decoded(Fp8((128, 128)), stored(codes, scales)), theirs.numpy())
