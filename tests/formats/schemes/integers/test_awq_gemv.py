"""AWQ for GEMV kernels: typed words, and checkpoints that are packed as AutoAWQ packs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantized
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.integers.awq_gemv import AwqGemv
from scheme_writers import WRITERS
from stored_parts import Stored, decoded

LAYOUTS = ("awq gemv", "awq gemv_fast")


def test_typed_words() -> None:
    gemv: Stored = {
        ".qweight": ("I32", np.array([[0x76543210], [0x00000009]], np.int32)),
        ".qzeros": ("I32", np.array([[0x21], [0x40]], np.int32)),  # 1 and 2, 0 and 4
        ".scales": ("F16", np.array([[1, 2, *[0] * 6], [3, 4, *[0] * 6]], np.float16)),
    }
    numbers = decoded(AwqGemv(4), gemv)
    assert numbers.tolist() == [[-1, 0, 1, 2, 4, 6, 8, 10], [27, 0, 0, 0, -16, -16, -16, -16]]
    words = np.zeros((1, 64), np.int16)
    words[0, 1] = 0x0010  # of row 0: the code after those of columns 0, 8, 16, 24, 1
    words[0, 16] = 0x0003  # row 1, column 0
    fast: Stored = {
        ".qweight": ("I16", words),
        ".qzeros": ("F16", np.array([[0, 0.5, 0, 0], *[[0] * 4] * 7], np.float16)),
        ".scales": ("F16", np.array([[2, 1, 1, 1], *[[0] * 4] * 7], np.float16)),
    }
    numbers = decoded(AwqGemv(-1, fast=True), fast)
    assert np.argwhere(numbers[0]).tolist() == [[9]]
    assert numbers[0, 9] == 2
    assert numbers[1, :2].tolist() == [3.5, 0.5]
    assert not numbers[2:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint(tmp_path: Path, layout: str) -> None:
    assert isinstance(scheme_of({"quantization_config": WRITERS[layout].config}), AwqGemv)
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS[layout]), keeps="_proj")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_that_do_not_fit(layout: str) -> None:
    parts, _ = WRITERS[layout].encode("", np.random.default_rng(0).standard_normal((8, 64), np.float32))
    fast = layout.endswith("fast")
    assert decoded(AwqGemv(32, fast=fast), parts).shape == (8, 64)
    for size in (0, 1, 48):
        with pytest.raises(ValueError, match="do not fit"):
            decoded(AwqGemv(size, fast=fast), parts)
    with pytest.raises(ValueError, match="its parts are"):
        decoded(AwqGemv(32, fast=not fast), parts)
