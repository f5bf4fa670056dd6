"""f16 numbers as f32: all that there are, and as many as do not fill a register."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit_kernels.blocks import dequantize
from quantkit_kernels.packing.widen import widen_f16


def test_each_number_is_exact() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    found, wanted = widen_f16(every), dequantize("f16", every, None, every.shape)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (3, 5), (9, 33)])
def test_any_count(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    np.testing.assert_array_equal(widen_f16(numbers), numbers.astype(np.float32))
