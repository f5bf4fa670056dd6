"""FP8, as DeepSeek-V3, Qwen, Mistral and Meta publish it: numbers of 8 bits, and factors of blocks or rows.

A matrix `X`, or a stack of matrices, is two tensors:

    X            F8_E4M3 [..., rows, columns]
    X_scale_inv  F32, F16, BF16, F8_E8M0, or U8 that is seen as F8_E8M0; also called X_scale

There is one factor for the whole matrix; or one for each block of `weight_block_size` rows and columns, the last ones
cut off by the edges; or as many as divide rows and columns, such as one for each row (`fbgemm_fp8`) or for 32 columns
(`mxfp8`). A number is the product of both. Activations, which the original may round to 8 bits, are as in every other
model.

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

WEIGHT = ".weight"
SCALES = ("_scale_inv", "_scale")
"""How names of factors end, after the name of their tensor; what they mean is the same."""
POWERS = ("F8_E8M0", "U8")
WHOLE = ((), (1,))
"""Shapes of a factor that a tensor has alone."""


class Fp8(Scheme):
    """Matrices in FP8.

    Parameters
    ----------
    block : tuple of int, optional
        Rows and columns that share a factor, where the edges may cut blocks.
    """

    known_as = "FP8"
    variants = "factors of blocks, rows or matrices, and MXFP8"
    kind = "f32"
    ignored = (
        *(".activation_scale", ".input_scale", ".input_scale_ub", "_proj_activation_scale"),
        *(".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".output_scale"),
    )

    def __init__(self, block: tuple[int, int] | None = None) -> None:
        self.block = block

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Fp8:
        block, form, experts = (config.get(field) for field in ("weight_block_size", "fmt", "expert_dtype"))
        if form not in (None, "e4m3", "float8_e4m3fn") or experts not in (None, "fp8"):
            raise UnsupportedError(
                f"quantization_config: fmt {form!r:.60} and expert_dtype {experts!r:.60} are not supported"
            )
        if block is None:
            return cls()
        if not isinstance(block, list) or len(block) != 2 or not all(type(side) is int and side > 0 for side in block):
            raise UnsupportedError(f"quantization_config: weight_block_size is {block!r:.60}, not two numbers")
        return cls((block[0], block[1]))

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        found = ((name.removesuffix(end), name) for name in held for end in SCALES if name.endswith(end))
        return {name: (name, scale) for name, scale in found if name in held or name.endswith(WEIGHT)}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, scale = parts
        if weight.dtype != "F8_E4M3" or scale.dtype not in (*PLAIN, *POWERS):
            raise ValueError(f"its weights are {weight.dtype} and its scales {scale.dtype}")
        sides_of(weight.shape, scale.shape, self.block)
        return weight.shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.float32]:
        weight, scale = parts
        numbers: NDArray[np.float32] = e4m3()[weight(wanted)]
        return numbers * factors(scale, weight.shape, wanted, self.block)


def sides_of(shape: Sequence[int], scales: Sequence[int], block: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that share a factor; raises `ValueError` where the factors do not fit the matrices.

    Parameters
    ----------
    shape, scales : sequence of int
        Of a matrix, or a stack of matrices, and of its factors.
    block : tuple of int, optional
        Rows and columns of blocks that the edges may cut.
    """
    if tuple(scales) in WHOLE and len(shape) >= 2:
        return shape[-2], shape[-1]
    if len(shape) == 2 and len(scales) == 1:
        scales = (*scales, 1)
    if len(shape) == len(scales) >= 2 and tuple(scales[:-2]) == tuple(shape[:-2]):
        matrix, counts = shape[-2:], tuple(scales[-2:])
        if block and counts == tuple(-(-side // size) for side, size in zip(matrix, block, strict=True)):
            return block
        if all(counts) and not any(np.remainder(matrix, counts)):
            return matrix[0] // counts[0], matrix[1] // counts[1]
    raise ValueError(f"weights of shape {tuple(shape)} have scales of shape {tuple(scales)}, which do not fit")


def factors(
    scale: Part, shape: Sequence[int], wanted: slice, block: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """The factors of some entries of the first axis of a tensor of `shape`: one for each number, or for all."""
    if scale.shape in WHOLE:
        return floats(scale()).reshape(())
    sides = sides_of(shape, scale.shape, block)
    first, last, _ = wanted.indices(shape[0])
    if len(shape) > 2:
        return spread(_floats(scale, wanted), (last - first, *shape[1:]), sides)
    scales = _floats(scale, slice(None))
    return spread(scales.reshape(len(scales), -1), (last - first, shape[1]), sides, first)


def _floats(scale: Part, wanted: slice) -> NDArray[np.float32]:
    stored = scale(wanted)
    return e4m3()[stored] if scale.dtype == "F8_E4M3" else floats(stored)
