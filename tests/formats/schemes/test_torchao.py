"""torchao: typed bytes, what the library stores, and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantized
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.torchao import TorchAo
from scheme_writers import WRITERS
from stored_parts import Stored, decoded

CONFIG = WRITERS["torchao"].config
TYPED: Stored = {
    "x._weight_qdata": ("I8", np.array([[1, -2, 3, 4]], np.int8)),
    "x._weight_scale": ("F32", np.array([[2, 0.5]], np.float32)),
    "x._weight_zero_point": ("I8", np.array([[0, 1]], np.int8)),
}


def test_typed_bytes() -> None:
    assert decoded(TorchAo(), TYPED).tolist() == [[2, -4, 1, 1.5]]
    fp8: Stored = {
        "x._weight_qdata": ("F8_E4M3", np.array([[0x38], [0x40]], np.uint8)),
        "x._weight_scale": ("BF16", np.array([[0x3F00], [0x4000]], np.uint16)),  # 0.5 and 2
    }
    assert decoded(TorchAo(), fp8).tolist() == [[0.5], [4]]
    assert decoded(TorchAo(), fp8, wanted=slice(1, 2)).tolist() == [[4]]


def test_a_checkpoint(tmp_path: Path) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS["torchao"]), keeps="_proj", kind="int8")


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("int4_weight_only", "int4_weight_only"),
        ({"default": {"_type": "Int4WeightOnlyConfig"}}, "Int4WeightOnlyConfig"),
        ({"default": {"_type": "FqnToConfig", "_data": {"lm_head": {"_type": "NVFP4Config"}}}}, "NVFP4Config"),
        (None, "None"),
    ],
)
def test_what_is_not_known_is_refused(variant: Any, named: str) -> None:
    with pytest.raises(UnsupportedError, match=f"quant_type '?{named}'? of torchao is not supported"):
        scheme_of({"quantization_config": {**CONFIG, "quant_type": variant}})


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"x._weight_qdata": ("I32", np.zeros((1, 4), np.int32))}, "its codes are I32"),
        ({"x._weight_zero_point": ("I8", np.zeros((1, 1), np.int8))}, "its zeros are I8"),
        ({"x._weight_qdata": ("I8", np.zeros((1, 3), np.int8))}, "do not fit"),
    ],
)
def test_parts_that_do_not_fit(spoiled: Stored, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(TorchAo(), {**TYPED, **spoiled})


@pytest.mark.live
@pytest.mark.parametrize("variant", ["int8", "int8 groups", "int4 groups", "asymmetric", "float8", "float8 whole"])
def test_what_the_library_stores(variant: str) -> None:
    import torch
    from torchao import quantization as ao
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    groups = ao.PerGroup(32)
    asymmetric = ao.MappingType.ASYMMETRIC
    config = {
        "int8": ao.Int8WeightOnlyConfig(),
        "int8 groups": ao.Int8WeightOnlyConfig(granularity=groups),
        "int4 groups": ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups),
        "asymmetric": ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups, mapping_type=asymmetric),
        "float8": ao.Float8WeightOnlyConfig(),
        "float8 whole": ao.Float8WeightOnlyConfig(granularity=ao.PerTensor()),
    }[variant]
    assert scheme_of({"quantization_config": {**CONFIG, "quant_type": {"default": config_to_dict(config)}}})
    layer = torch.nn.Linear(128, 64, bias=False)
    ao.quantize_(layer, config)
    tensors, _ = flatten_tensor_state_dict({"x.weight": layer.weight})
    stored = {
        name: ("F8_E4M3", part.view(torch.uint8).numpy())
        if part.itemsize == 1 and part.is_floating_point()
        else ({torch.int8: "I8", torch.float32: "F32"}[part.dtype], part.numpy())
        for name, part in tensors.items()
    }
    np.testing.assert_array_equal(decoded(TorchAo(), stored), layer.weight.dequantize().detach().numpy())
