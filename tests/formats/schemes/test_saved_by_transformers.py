"""Checkpoints that transformers itself quantizes and saves: names, config.json and numbers are as it has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
import tiny
from quantkit import formats
from quantkit.errors import UnsupportedError
from quantkit.formats.schemes import RENAMED, SCHEMES, scheme_of
from quantkit.models.registry import read

pytestmark = pytest.mark.live


def four_bits(**options: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, **options)


def eight_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def of_four_bits(weight: Any) -> Any:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def of_eight_bits(weight: Any) -> Any:
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(weight.CB if weight.CB is not None else weight.data, weight.SCB)


def of_torchao(weight: Any) -> Any:
    return weight.dequantize()


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "fp4": (four_bits, of_four_bits),
    "nf4 nested": (
        lambda: four_bits(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        of_four_bits,
    ),
    "nf4 as bf16": (
        lambda: four_bits(bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage="bfloat16"),
        of_four_bits,
    ),
    "int8": (eight_bits, of_eight_bits),
    "torchao": (torchao, of_torchao),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_read(case: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config, dequantized = CASES[case]
    folder = tiny.checkpoint(tmp_path / "plain", "llama", dtype="F32", **quantized.SHAPES)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config(), dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "saved")
    source = formats.open(tmp_path / "saved")
    assert source.check(read(source.config).record().tensors) == []
    weights = {f"{name}.weight": module.weight for name, module in model.named_modules() if hasattr(module, "weight")}
    for name in source.names:
        ours: NDArray[Any] = source.tensor(name).data
        theirs = dequantized(weights[name]) if name.endswith("_proj.weight") else weights[name]
        np.testing.assert_array_equal(ours, theirs.detach().float().numpy(), err_msg=name)
    assert sum(name.endswith("_proj.weight") for name in source.names) == 14


def test_every_method_of_transformers_is_read_or_refused_by_name() -> None:
    from transformers.utils.quantization_config import QuantizationMethod

    for method in (each.value for each in QuantizationMethod):
        if method not in {*SCHEMES, *RENAMED}:
            with pytest.raises(UnsupportedError, match=f"already quantized .*'{method}'.*use the original checkpoint"):
                scheme_of({"quantization_config": {"quant_method": method}})
