"""FP8, as DeepSeek-V3, Qwen and Mistral publish it: numbers of 8 bits, and a factor for each block of them.

A matrix `X`, or a stack of matrices, is two tensors:

    X.weight            F8_E4M3 [..., rows, columns]
    X.weight_scale_inv  F32, F16, BF16 or F8_E8M0: one number for each block of `weight_block_size` rows and columns,
                        the last ones cut off by the edges; without blocks, one for the whole matrix

A number is the product of both. Activations, which the original may round to 8 bits, are as in every other model.

DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import PLAIN, e4m3, floats, spread
from quantkit.formats.schemes.scheme import Part, Scheme

WEIGHT, SCALE = ".weight", ".weight_scale_inv"


class Fp8(Scheme):
    """Matrices in FP8.

    Parameters
    ----------
    block : tuple of int, optional
        Rows and columns that share a factor; None where a matrix has one.
    """

    kind = "f32"
    ignored = (".activation_scale", ".input_scale", ".k_scale", ".v_scale")

    def __init__(self, block: tuple[int, int] | None) -> None:
        self.block = block

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Fp8:
        block, form = config.get("weight_block_size"), config.get("fmt", "e4m3")
        if form not in ("e4m3", "float8_e4m3fn"):
            raise UnsupportedError(f"quantization_config: fmt {form!r:.60} is not supported")
        if block is None:
            return cls(None)
        if not isinstance(block, list) or len(block) != 2 or not all(type(side) is int and side > 0 for side in block):
            raise UnsupportedError(f"quantization_config: weight_block_size is {block!r:.60}, not two numbers")
        return cls((block[0], block[1]))

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        modules = [name.removesuffix(SCALE) for name in names if name.endswith(SCALE)]
        return {module + WEIGHT: (module + WEIGHT, module + SCALE) for module in modules}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, scale = parts
        if weight.dtype != "F8_E4M3" or scale.dtype not in (*PLAIN, "F8_E8M0"):
            raise ValueError(f"its weights are {weight.dtype} and its scales {scale.dtype}")
        expected = [(), (1,)]
        if self.block is not None and len(weight.shape) >= 2:
            sides = zip(weight.shape[-2:], self.block, strict=True)
            expected = [(*weight.shape[:-2], *(-(-side // size) for side, size in sides))]
        if scale.shape not in expected:
            raise ValueError(f"weights of shape {weight.shape} have scales of shape {scale.shape}, not {expected[-1]}")
        return weight.shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.float32]:
        numbers: NDArray[np.float32] = e4m3()[parts[0](wanted)]
        if self.block is None:
            return numbers * floats(parts[1]()).reshape(())
        shape = parts[0].shape
        if len(shape) > 2:
            return numbers * spread(floats(parts[1](wanted)), numbers.shape, self.block)
        return numbers * spread(floats(parts[1]()), numbers.shape, self.block, wanted.indices(shape[0])[0])
