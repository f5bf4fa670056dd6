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
from scheme_writers import Written, awq, gptq

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
    folders = quantized.checkpoints(tmp_path, encode, {**CONFIG, "packing_format": packing})
    eight_bits = r"(?<!layers\.0\.mlp\.down)" if encode is as_gptq else ""
    quantized.assert_equal(*folders, keeps=f"{eight_bits}_proj")


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
