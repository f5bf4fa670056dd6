"""HQQ: typed bytes, every packing as the library packs it, and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.formats.schemes.integers.hqq import Hqq
from scheme_writers import WRITERS, text
from stored_parts import Stored, decoded


def typed(**changed: tuple[str, NDArray[Any]]) -> Stored:
    """Two rows of four, in groups of two, whose codes are 0 to 7: the first half of the groups is in the upper bits."""
    return {
        ".W_q": ("U8", np.array([[0x04, 0x15], [0x26, 0x37]], np.uint8)),
        ".packing": text("4bit_u8"),
        ".shape": ("I64", np.array([2, 4])),
        ".scale": ("F32", np.array([[1], [2], [3], [4]], np.float32)),
        ".zero": ("F16", np.array([[0], [0.5], [0], [1]], np.float16)),
        ".nbits": ("I32", np.array(4, np.int32)),
    } | {f".{name}": part for name, part in changed.items()}


def test_typed_bytes() -> None:
    assert decoded(Hqq(), typed()).tolist() == [[0, 1, 3, 5], [12, 15, 20, 24]]
    assert decoded(Hqq(), typed(), wanted=slice(1, 2)).tolist() == [[12, 15, 20, 24]]
    scale, zero = ("F32", np.array([[1, 10]], np.float32)), ("F32", np.array([[0, 1]], np.float32))
    assert decoded(Hqq(), typed(scale=scale, zero=zero)).tolist() == [[0, 0, 2, 20], [4, 40, 6, 60]]


def test_a_checkpoint(tmp_path: Path) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS["hqq"]), keeps="_proj")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packing": text("5bit_u8")}, "its packing is U8"),
        ({"packing": ("U8", np.zeros(10**6, np.uint8))}, "its packing is U8"),
        ({"shape": ("I64", np.array([2, -4]))}, "its shape is not two numbers"),
        ({"shape": ("I32", np.array([2, 4], np.int32))}, "its shape is not two numbers"),
        ({"shape": ("I64", np.array([2**62, 2**62]))}, "its codes are U8 of shape"),
        ({"shape": ("I64", np.array([1, 3]))}, "its codes are U8 of shape"),
        ({"W_q": ("I32", np.zeros((2, 2), np.int32))}, "its codes are I32"),
        ({"scale": ("F32", np.ones((4, 2), np.float32))}, "'.scale' is F32 of shape"),
        ({"zero": ("F32", np.ones((1, 2), np.float32))}, "'.zero' is F32 of shape"),
    ],
)
def test_parts_that_do_not_fit(changed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(Hqq(), typed(**changed))


@pytest.mark.live
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2, 1])
def test_what_the_library_saves(bits: int, axis: int, as_float: bool) -> None:
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    weight = torch.from_numpy(np.random.default_rng(bits).standard_normal((24, 128), np.float32))
    config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis, view_as_float=as_float)
    layer = HQQLinear.from_weights(weight, None, config, compute_dtype=torch.float32, device="cpu")
    names = {torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}
    state = {f".{name}": part.detach() for name, part in layer.state_dict().items()}
    stored = {name: (names[part.dtype], part.numpy()) for name, part in state.items()}
    np.testing.assert_array_equal(decoded(Hqq(), stored), layer.dequantize().numpy())
    np.testing.assert_array_equal(decoded(Hqq(), stored, wanted=slice(5, 9)), layer.dequantize().numpy()[5:9])
