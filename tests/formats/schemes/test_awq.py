"""AWQ: typed words and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.awq import ORDER, Awq
from stored_parts import Stored, decoded

CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
Weights = NDArray[np.float32]


def words_of(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Codes `[columns, rows]` -> eight rows in a word, in AutoAWQ's order."""
    eights = codes.reshape(len(codes), -1, 8)[..., ORDER].astype(np.uint32)
    words: NDArray[np.uint32] = (eights << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    return words.view(np.int32)


def encode(module: str, weight: Weights) -> tuple[Stored, Weights]:
    groups = weight.T.reshape(-1, 32, len(weight))
    scales = ((groups.max(1) - groups.min(1)) / 15).astype(np.float16)
    zeros = np.rint(-groups.min(1) / scales).clip(0, 15)
    codes = np.rint(groups / scales[:, None] + zeros[:, None]).clip(0, 15)
    parts: dict[str, tuple[str, NDArray[Any]]] = {
        ".qweight": ("I32", words_of(codes.reshape(weight.T.shape).astype(np.uint8))),
        ".qzeros": ("I32", words_of(zeros.astype(np.uint8))),
        ".scales": ("F16", scales),
    }
    numbers = (codes - zeros[:, None]).astype(np.float32) * scales[:, None].astype(np.float32)
    return parts, np.ascontiguousarray(numbers.reshape(weight.T.shape).T)


def test_typed_words() -> None:
    weight = np.array([[0x75316420]], np.int32)  # one column; rows 0 to 7 have the codes 0 to 7
    zeros, scales = np.array([[0x11111111]], np.int32), np.full((1, 8), 0.5, np.float16)
    numbers = decoded(Awq(), {".qweight": ("I32", weight), ".qzeros": ("I32", zeros), ".scales": ("F16", scales)})
    assert numbers.tolist() == [[(code - 1) / 2] for code in range(8)]


def test_a_checkpoint(tmp_path: Path) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, encode, "quantization_config", CONFIG))


@pytest.mark.parametrize("spoiled", [{"bits": 3}, {"version": "gemv_fast"}])
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(spoiled))):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


def test_parts_that_do_not_fit() -> None:
    parts, _ = encode("", np.eye(8, 32, dtype=np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        decoded(Awq(), {**parts, ".scales": ("F16", parts[".scales"][1][:, :4])})
