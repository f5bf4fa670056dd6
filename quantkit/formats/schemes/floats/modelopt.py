"""ModelOpt, as NVIDIA publishes models: numbers of 8 or 4 bits, and factors of matrices, rows or groups.

A matrix `X`, `[rows, columns]`, is stored in one of these ways; which one, its dtypes and shapes say:

    X.weight           F8_E4M3 [rows, columns]
    X.weight           U8 [rows, columns / 2]: codes of FP4, two a byte, the lower four bits first
    X.weight_scale     F32, F16 or BF16: a factor, or one for each row or block; or U8: powers of two for 32 columns
    X.weight_scale     F8_E4M3 [rows, columns / 16] (NVFP4), where codes are FP4
    X.weight_scale_2   F32 [], which multiplies the scales of NVFP4
    X.pre_quant_scale  F16, BF16 or F32 [columns], which multiplies inputs, and here columns; may be missing

A number is the product of all of them. `hf_quant_config.json` says what config.json may not: that, and `quant_algo`.

NVIDIA Model Optimizer, https://github.com/NVIDIA/Model-Optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.floats.fp8 import WEIGHT, WHOLE, Fp8, factors, sides_of
from quantkit.formats.schemes.packing import E2M1, PLAIN, floats, nibbles_of
from quantkit.formats.schemes.scheme import Part

ALGORITHMS = (
    *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "FP8_PB_REAL", "MXFP8", "MIXED_PRECISION"),
    *("NVFP4", "W4A16_NVFP4", "NVFP4_AWQ", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8"),
)
SCALE, SCALE_2, INPUTS = ".weight_scale", ".weight_scale_2", ".pre_quant_scale"


class ModelOpt(Fp8):
    """Matrices as NVIDIA's Model Optimizer stores them."""

    known_as = "NVIDIA ModelOpt"
    variants = "FP8, MXFP8, NVFP4; also where `hf_quant_config.json` alone says so"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelOpt:
        layers = config.get("quantized_layers")
        said = [config, *(layers.values() if isinstance(layers, dict) else ())]
        for each in said:
            algorithm = each.get("quant_algo") if isinstance(each, dict) else each
            if algorithm not in ALGORITHMS:
                raise UnsupportedError(f"quantization_config: quant_algo {algorithm!r:.60} is not supported")
        return cls()

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        modules = (name.removesuffix(SCALE) for name in held if name.endswith(SCALE))
        return {
            it + WEIGHT: (it + WEIGHT, it + SCALE, *(it + other for other in (SCALE_2, INPUTS) if it + other in held))
            for it in modules
        }

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, scale, *others = parts
        second, inputs = _named(others)
        shape = weight.shape
        if weight.dtype == "U8" and len(shape) == 2:
            shape = shape[0], 2 * shape[1]
            if scale.dtype not in ("U8", "F8_E4M3") or (scale.dtype == "F8_E4M3") != bool(second):
                raise ValueError(f"its scales are {scale.dtype}, and it has {'a' if second else 'no'} {SCALE_2[1:]}")
            sides_of(shape, scale.shape, None)
        else:
            super().shape((weight, scale))
        if second and (second.dtype != "F32" or second.shape not in WHOLE):
            raise ValueError(f"its {SCALE_2[1:]} is {second.dtype} of shape {second.shape}, not one number")
        if inputs and (inputs.dtype not in PLAIN or inputs.shape != shape[1:]):
            raise ValueError(f"its {INPUTS[1:]} is {inputs.dtype} of shape {inputs.shape}, for {shape}")
        return shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.float32]:
        weight, scale, *others = parts
        second, inputs = _named(others)
        if weight.dtype == "U8":
            codes = np.array(E2M1, np.float32)[nibbles_of(weight(wanted))]
            scales = factors(scale, self.shape(parts), wanted)
            numbers = codes * (scales * second().reshape(()) if second else scales)
        else:
            numbers = super().decode((weight, scale), wanted)
        return numbers * floats(inputs()) if inputs else numbers


def config_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json would say, from a `hf_quant_config.json`."""
    found = said.get("quantization")
    return {**(found if isinstance(found, dict) else {}), "quant_method": "modelopt"}


def _named(others: Sequence[Part]) -> tuple[Part | None, Part | None]:
    """The second factor, and the factors of inputs, among the parts that may be missing."""
    found = {end: part for part in others for end in (SCALE_2, INPUTS) if part.name.endswith(end)}
    return found.get(SCALE_2), found.get(INPUTS)
