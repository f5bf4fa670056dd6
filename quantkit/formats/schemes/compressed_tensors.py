"""compressed-tensors, as llm-compressor writes it: integers or small floats, and scales for rows, groups or blocks.

A matrix `X`, `[rows, columns]`, is stored in one of these ways; which one, its tensors and their dtypes say:

    X.weight_packed  I32 [rows, columns / (32 // bits)]  codes of integers, 2 ** (bits - 1) more than they stand for
    X.weight_packed  U8 [rows, columns / 2]              codes of FP4, two a byte, the lower four bits first
    X.weight         I8 or F8_E4M3 [rows, columns]
    X.weight_scale   F16, BF16, F32; F8_E4M3 (nvfp4) or U8 (mxfp4: powers of two) where codes are FP4
    X.weight_zero_point    zeros of the integers, packed down the rows as the codes are along them; may be missing
    X.weight_global_scale  F32 [1], which divides the scales of nvfp4
    X.weight_g_idx         I32 [columns]: group of each column; may be missing
    X.weight_shape         I64 [2]: rows and columns; says how many bits integers have, where modules differ

A number is `scale * (code - zero)`.

The compressed-tensors library, https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import (
    E2M1,
    PLAIN,
    Floats,
    block_of,
    codes_of,
    e4m3,
    floats,
    group_scales,
    nibbles_of,
)
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mixed-precision"),
)
PACKED, SCALE = ".weight_packed", ".weight_scale"
BITS = (2, 4, 8)
"""Of packed integers; codes of others lie in two words, or not, depending on the library's version."""
SHAPE = ".weight_shape"
OTHERS = (".weight_zero_point", ".weight_global_scale", ".weight_g_idx")
"""How parts of a module's weight that may be missing are named."""


class CompressedTensors(Scheme):
    """Matrices as the compressed-tensors library stores them.

    Parameters
    ----------
    *bits : int
        Of integers that are packed into words; several where modules differ.
    block : tuple of int, optional
        Rows and columns that share a scale, where these are blocks that the edges may cut.
    """

    known_as = "compressed-tensors"
    variants = "integers of 2, 4 and 8 bits, FP8, NVFP4, MXFP4, modules that differ"
    kind = "f32"
    ignored = (
        *(SHAPE, ".input_scale", ".input_zero_point", ".input_global_scale"),
        *(".output_scale", ".q_scale", ".k_scale", ".v_scale"),
    )

    def __init__(self, *bits: int, block: tuple[int, int] | None = None) -> None:
        self.bits, self.block = bits or (4,), block

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CompressedTensors:
        form = config.get("format", "naive-quantized")
        sparse = config.get("sparsity_config") or {}
        if form not in FORMATS or (isinstance(sparse, dict) and sparse.get("format", "dense") != "dense"):
            raise UnsupportedError(f"quantization_config: format {form!r:.60} or its sparsity is not supported")
        groups = config.get("config_groups")
        weights = [
            group["weights"]
            for group in (groups.values() if isinstance(groups, dict) else ())
            if isinstance(group, dict) and isinstance(group.get("weights"), dict)
        ]
        packed = [each.get("num_bits") for each in weights if each.get("type", "int") == "int"]
        blocks = [each["block_structure"] for each in weights if isinstance(each.get("block_structure"), list)]
        known = all(type(bits) is int and bits in BITS for bits in packed) and all(map(_is_block, blocks))
        if not known or any(block != blocks[0] for block in blocks):
            said = f"{packed!r:.60} bits and blocks of {blocks!r:.100}"
            raise UnsupportedError(f"quantization_config: {said} are not supported")
        return cls(*sorted(set(packed)), block=tuple(blocks[0]) if blocks else None)

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        found = {}
        for module in (name.removesuffix(SCALE) for name in held if name.endswith(SCALE)):
            weight = module + (PACKED if module + PACKED in held else ".weight")
            others = (*OTHERS, SHAPE) if len(self.bits) > 1 else OTHERS
            parts = (weight, module + SCALE, *(module + other for other in others if module + other in held))
            found[f"{module}.weight"] = parts
        return found

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, scale, *others = parts
        if len(weight.shape) != 2 or weight.dtype not in ("I32", "U8", "I8", "F8_E4M3"):
            raise ValueError(f"its weights are {weight.dtype} of shape {weight.shape}")
        if scale.dtype not in (*PLAIN, *(("F8_E4M3", "U8") if weight.dtype == "U8" else ())):
            raise ValueError(f"its scales are {scale.dtype}")
        per_entry = {"I32": 32 // self._bits(parts), "U8": 2}.get(weight.dtype, 1)
        shape = weight.shape[0], weight.shape[1] * per_entry
        block = self._block(shape, scale.shape)
        zero, _, order = _sorted(others)
        zeros = zero and (shape[0] // block[0], shape[1] // block[1])
        if zeros and weight.dtype == "I32":
            zeros = -(-zeros[0] // per_entry), zeros[1]
        if zero and (zero.shape != zeros or zero.dtype != weight.dtype):
            raise ValueError(f"its zeros are {zero.dtype} of shape {zero.shape}")
        if order and order.shape != shape[1:]:
            raise ValueError(f"groups of {order.shape} columns do not fit {shape}")
        return shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        numbers = _numbers(parts[0], self._bits(parts), wanted)
        scales, zeros, groups = self._groups(parts, wanted)
        if zeros is not None:
            numbers -= zeros[:, groups]
        numbers *= scales[:, groups]
        return numbers

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        if parts[0].dtype not in ("I32", "I8"):
            return None
        scales, zeros, groups = self._groups(parts, wanted)
        bits = self._bits(parts)
        least = np.float32(-(1 << bits - 1))
        return group_scales(scales, scales * (least if zeros is None else least - zeros), groups, bits)

    def _groups(self, parts: Sequence[Part], wanted: slice) -> tuple[Floats, Floats | None, NDArray[Any]]:
        """Scales and zeros `[rows, groups]` of some rows, and the group of each column."""
        _, scale, *others = parts
        shape = self.shape(parts)
        block, rows = self._block(shape, scale.shape), np.arange(*wanted.indices(shape[0]))
        zero, divisor, order = _sorted(others)
        scales: Floats = e4m3()[scale()] if scale.dtype == "F8_E4M3" else floats(scale())
        scales = scales.reshape(_matrix(scales.shape))
        if divisor:
            scales = scales / divisor().reshape(())
        zeros = _zeros(zero, self._bits(parts), len(scales))[rows // block[0]] if zero else None
        groups = order() if order else None
        if groups is None or groups.min() < 0:
            groups = np.arange(shape[1]) // block[1]
        elif groups.max() >= scales.shape[1]:
            raise ValueError(f"a column is of group {groups.max()}, of which there are {scales.shape[1]}")
        return scales[rows // block[0]], zeros, groups

    def _block(self, shape: Sequence[int], scales: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        if self.block and _matrix(scales) == (-(-shape[0] // self.block[0]), -(-shape[1] // self.block[1])):
            return self.block
        return block_of(shape, _matrix(scales))

    def _bits(self, parts: Sequence[Part]) -> int:
        """Bits of an integer: those that config.json says, of several those that make as many words of its columns."""
        weight = parts[0]
        if weight.dtype != "I32" or len(self.bits) == 1:
            return max(self.bits)
        shape = next((part for part in parts if part.name.endswith(SHAPE)), None)
        if shape is None or shape.dtype not in ("I32", "I64") or shape.shape != (2,) or len(weight.shape) != 2:
            raise ValueError(f"config.json says {self.bits} bits, and no {SHAPE[1:]} says which of them these are")
        columns = int(shape()[1])
        found = [bits for bits in self.bits if -(-columns // (32 // bits)) == weight.shape[1]]
        if len(found) != 1:
            raise ValueError(f"words of shape {weight.shape} do not fit {columns} columns of any of {self.bits} bits")
        return found[0]


def _numbers(weight: Part, bits: int, wanted: slice) -> Floats:
    """The numbers of some rows, before they are scaled."""
    stored = weight(wanted)
    if weight.dtype == "I32":
        return codes_of(stored, bits).astype(np.float32) - np.float32(1 << bits - 1)
    if weight.dtype == "U8":
        return np.array(E2M1, np.float32)[nibbles_of(stored)]
    numbers: Floats = e4m3()[stored] if weight.dtype == "F8_E4M3" else stored.astype(np.float32)
    return numbers


def _zeros(zero: Part, bits: int, rows: int) -> Floats:
    """The zeros of all rows of scales."""
    if zero.dtype == "I32":
        return codes_of(zero().T, bits).T[:rows].astype(np.float32) - np.float32(1 << bits - 1)
    return zero().astype(np.float32)


def _is_block(sides: Sequence[Any]) -> bool:
    return len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of scales, one for all numbers, or for each row, as that of a matrix."""
    return (shape[0], shape[1]) if len(shape) == 2 else (int(np.prod(shape)), 1)


def _sorted(others: Sequence[Part]) -> tuple[Part | None, Part | None, Part | None]:
    """Zeros, divisor and groups of columns among the parts that may be missing."""
    found = {end: part for part in others for end in OTHERS if part.name.endswith(end)}
    zero, divisor, order = map(found.get, OTHERS)
    return zero, divisor, order
