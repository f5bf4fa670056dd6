"""AWQ: typed words and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.integers.awq import Awq
from scheme_writers import WRITERS
from stored_parts import Stored, decoded

encode, CONFIG, _ = WRITERS["awq"]


def test_typed_words() -> None:
    weight = np.array([[0x75316420]], np.int32)  # one column; rows 0 to 7 have the codes 0 to 7
    zeros, scales = np.array([[0x11111111]], np.int32), np.full((1, 8), 0.5, np.float16)
    numbers = decoded(Awq(), {".qweight": ("I32", weight), ".qzeros": ("I32", zeros), ".scales": ("F16", scales)})
    assert numbers.tolist() == [[(code - 1) / 2] for code in range(8)]


def test_a_checkpoint(tmp_path: Path) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS["awq"]), keeps="_proj")


@pytest.mark.parametrize("spoiled", [{"bits": 3}, {"version": "marlin"}, {"version": "gemv", "group_size": 0}])
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(spoiled))):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


def test_parts_that_do_not_fit() -> None:
    parts, _ = encode("", np.eye(8, 32, dtype=np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        decoded(Awq(), {**parts, ".scales": ("F16", parts[".scales"][1][:, :4])})


@pytest.mark.live
def test_what_auto_round_packs() -> None:
    import torch
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm

    random = np.random.default_rng(0)
    layer = torch.nn.Linear(128, 64, bias=False)
    layer.weight.data = torch.from_numpy(random.standard_normal((64, 128), np.float32))
    scales = torch.from_numpy(random.uniform(0.01, 0.3, (4, 64)).astype(np.float32))
    zeros = torch.from_numpy(random.integers(0, 16, (4, 64)).astype(np.float32))
    packed = WQLinear_GEMM.from_linear(layer, 4, 32, scales=scales, zeros=zeros, device="cpu")
    stored: Stored = {
        ".qweight": ("I32", packed.qweight.numpy()),
        ".qzeros": ("I32", packed.qzeros.numpy()),
        ".scales": ("F16", packed.scales.numpy()),
    }
    theirs = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, 32).t().numpy()
    np.testing.assert_array_equal(decoded(Awq(), stored), theirs)
