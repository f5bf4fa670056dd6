"""ModelOpt: typed bytes, checkpoints whose quantization a file beside config.json names, and what the library does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantized
from quantkit import formats
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import scheme_of
from quantkit.formats.schemes.floats.modelopt import ModelOpt
from scheme_writers import WRITERS
from stored_parts import Stored, decoded

CONFIG = WRITERS["modelopt"].config
CODES = ("U8", np.array([[0x21, 0xF8]], np.uint8))  # 0.5 1, -0 -6
NVFP4: Stored = {
    ".weight": CODES,
    ".weight_scale": ("F8_E4M3", np.array([[0x40]], np.uint8)),  # 2
    ".weight_scale_2": ("F32", np.array(0.25, np.float32)),
}


def test_typed_bytes() -> None:
    assert decoded(ModelOpt(), NVFP4).tolist() == [[0.25, 0.5, 0, -3]]
    smoothed = {**NVFP4, ".pre_quant_scale": ("F32", np.array([1, 2, 3, 4], np.float32))}
    assert decoded(ModelOpt(), smoothed).tolist() == [[0.25, 1, 0, -12]]
    mxfp4: Stored = {".weight": CODES, ".weight_scale": ("U8", np.array([[128]], np.uint8))}
    assert decoded(ModelOpt(), mxfp4).tolist() == [[1, 2, 0, -12]]
    fp8: Stored = {
        ".weight": ("F8_E4M3", np.array([[0x38, 0x40]], np.uint8)),
        ".weight_scale": ("F32", np.array(0.5, np.float32)),
    }
    assert decoded(ModelOpt(), fp8).tolist() == [[0.5, 1]]


def test_a_checkpoint(tmp_path: Path) -> None:
    quantized.assert_equal(*quantized.checkpoints(tmp_path, *WRITERS["modelopt"]))


def test_a_file_beside_config_json_may_name_it(tmp_path: Path) -> None:
    plain, folder = quantized.checkpoints(tmp_path, *WRITERS["modelopt"])
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    file, said = folder / "hf_quant_config.json", {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
    file.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    before = formats.open(folder).identity()
    quantized.assert_equal(plain, folder)
    file.write_text(json.dumps({"quantization": said | {"quant_algo": "NVFP4_SVD"}}))
    with pytest.raises(UnsupportedError, match=r"hf_quant_config\.json: .*NVFP4_SVD"):
        formats.open(folder)
    file.write_text(json.dumps({"quantization": said | {"group_size": 16}}))
    assert formats.open(folder).identity() != before


@pytest.mark.parametrize(
    "spoiled", [{"quant_algo": "W4A16_AWQ"}, {"quantized_layers": {"lm_head": {"quant_algo": "INT2"}}}]
)
def test_what_is_not_known_is_refused(spoiled: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"quant_algo '(W4A16_AWQ|INT2)' is not supported"):
        scheme_of({"quantization_config": {**CONFIG, **spoiled}})


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({".weight_scale": ("F32", np.ones((1, 1), np.float32))}, "its scales are F32"),
        ({".weight_scale": ("F8_E4M3", np.ones((1, 3), np.uint8))}, "do not fit"),
        ({".weight_scale_2": ("F32", np.ones(2, np.float32))}, "not one number"),
        ({".pre_quant_scale": ("F32", np.ones(3, np.float32))}, "pre_quant_scale is F32 of shape"),
        ({".weight": ("I8", np.zeros((1, 4), np.int8))}, "its weights are I8"),
    ],
)
def test_parts_that_do_not_fit(spoiled: Stored, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(ModelOpt(), {**NVFP4, **spoiled})


def test_a_factor_that_is_missing() -> None:
    with pytest.raises(ValueError, match="has no weight_scale_2"):
        decoded(ModelOpt(), {name: part for name, part in NVFP4.items() if name != ".weight_scale_2"})


@pytest.mark.live
def test_groups_are_what_the_library_makes_of_them() -> None:
    import torch
    from modelopt.torch.quantization.qtensor import MXFP8QTensor, NVFP4QTensor

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((48, 64), np.float32))
    codes, scales, second = NVFP4QTensor.quantize(weight, 16)
    theirs = codes.dequantize(torch.float32, scale=scales, double_scale=second, block_sizes={-1: 16})
    stored: Stored = {
        ".weight": ("U8", codes._quantized_data.numpy()),
        ".weight_scale": ("F8_E4M3", scales.view(torch.uint8).numpy()),
        ".weight_scale_2": ("F32", second.numpy()),
    }
    np.testing.assert_array_equal(decoded(ModelOpt(), stored), theirs.numpy())
    codes, powers = MXFP8QTensor.quantize(weight)
    stored = {
        ".weight": ("F8_E4M3", codes._quantized_data.view(torch.uint8).numpy()),
        ".weight_scale": ("U8", powers.numpy()),
    }
    np.testing.assert_array_equal(decoded(ModelOpt(), stored), codes.dequantize(torch.float32, scale=powers).numpy())
