"""AutoRound: what it stores is read as GPTQ's or AWQ's, and what is neither is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.gptq import Gptq
from scheme_writers import Written, awq, gptq
from stored_parts import Stored, decoded

CONFIG = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
    "extra_config": {"lm_head": {"bits": 16}, "model.layers.0.mlp.down_proj": {"bits": 8}},
}


def as_gptq(module: str, weight: NDArray[np.float32]) -> Written:
    return gptq(module, weight, bits=8 if "layers.0.mlp.down_proj" in module else 4)


def as_gptq_v2(module: str, weight: NDArray[np.float32]) -> Written:
    return gptq(module, weight, less=0)


@pytest.mark.parametrize(
    ("packing", "encode"),
    [("auto_round:auto_gptq", as_gptq), ("auto_round:gptqmodel", as_gptq_v2), ("auto_round:auto_awq", awq)],
)
def test_a_checkpoint(tmp_path: Path, packing: str, encode: Any) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, encode, {**CONFIG, "packing_format": packing}))


@pytest.mark.parametrize(
    "spoiled",
    [
        {"packing_format": "auto_round:llm_compressor"},
        {"packing_format": ["auto_round"]},
        {"data_type": "mx_fp"},
        {"rotation_config": {"hadamard": True}},
    ],
)
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"quantization_config: packing_format .* is not supported"):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


@pytest.mark.live
@pytest.mark.parametrize(("library", "form"), [("qlinear_torch_zp", "gptq"), ("qlinear_torch", "gptq_v2")])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_the_library_packs(library: str, form: str, bits: int) -> None:
    import importlib

    import torch

    qlinear = importlib.import_module(f"auto_round_extension.torch.{library}")
    random = np.random.default_rng(bits)
    weight = torch.from_numpy(random.standard_normal((64, 128), np.float32))
    scales = torch.from_numpy(random.uniform(0.01, 0.02, (64, 4)).astype(np.float32))
    zeros = torch.from_numpy(random.integers(1, 2**bits, (64, 4)).astype(np.float32))
    layer = torch.nn.Linear(128, 64, bias=False)
    layer.weight.data = weight
    packed = qlinear.QuantLinear(bits, 32, 128, 64, False)
    packed.device = "cpu"
    packed.pack(layer, scales, zeros, None, "cpu")
    stored: Stored = {
        ".qweight": ("I32", packed.qweight.numpy()),
        ".qzeros": ("I32", packed.qzeros.numpy()),
        ".scales": ("F16", packed.scales.numpy()),
    }
    scheme = scheme_of({"quantization_config": {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}})
    assert isinstance(scheme, Gptq)
    half = scales.half().float().numpy().repeat(32, 1)
    wide = zeros.numpy().repeat(32, 1)
    codes = np.rint(weight.numpy() / scales.numpy().repeat(32, 1) + wide).clip(0, 2**bits - 1)
    np.testing.assert_array_equal(decoded(scheme, stored), (codes - wide) * half)
