"""AWQ, as AutoAWQ writes it for its GEMM kernels: codes of 4 bits, and a scale and a zero for each group.

`awq_gemv.py` has what it writes for others.

A matrix `X`, `[rows, columns]`, is stored transposed; the codes of eight rows share a word, in an order of their own:

    X.qweight  I32 [columns, rows / 8]
    X.qzeros   I32 [groups, rows / 8]
    X.scales   F16, BF16 or F32 [groups, rows]

A number is `scale * (code - zero)`.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.integers.awq_gemv import AwqGemv
from quantkit.formats.schemes.packing import PLAIN, Floats, codes_of, floats, group_scales
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

BITS, PER_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of its eight rows each code of a word belongs to, the lowest bits first."""


class Awq(Scheme):
    """Matrices in the format of AutoAWQ's GEMM kernels."""

    known_as = "AWQ"
    variants = "4 bits, in the layouts of AutoAWQ's GEMM and GEMV kernels"
    kind = "f32"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Scheme:
        bits, size = config.get("bits", config.get("w_bit", BITS)), config.get("group_size", config.get("q_group_size"))
        version = str(config.get("version", config.get("format", "gemm"))).lower()
        if bits == BITS and version in ("gemm", "exllama"):
            return cls()
        if bits == BITS and version in ("gemv", "gemv_fast") and type(size) is int and (size > 0 or size == -1):
            return AwqGemv(size, fast=version == "gemv_fast")
        said = f"{bits!r:.20} bits, version {version!r:.60} and groups of {size!r:.20}"
        raise UnsupportedError(f"quantization_config: {said} are not supported")

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        modules = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
        return {f"{it}.weight": (f"{it}.qweight", f"{it}.qzeros", f"{it}.scales") for it in modules}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, zeros, scales = parts
        if (weight.dtype, zeros.dtype) != ("I32", "I32") or scales.dtype not in PLAIN:
            raise ValueError(f"its parts are {', '.join(part.dtype for part in parts)}")
        if not all(len(part.shape) == 2 for part in parts):
            raise ValueError(f"its codes have shape {weight.shape}")
        columns, rows, groups = weight.shape[0], PER_WORD * weight.shape[1], scales.shape[0]
        if scales.shape[1] != rows or zeros.shape != (groups, weight.shape[1]) or not groups or columns % groups:
            raise ValueError(f"codes of shape {weight.shape} do not fit scales {scales.shape} and zeros {zeros.shape}")
        return rows, columns

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        codes = codes_of(parts[0](), BITS, order=ORDER)[:, wanted].astype(np.float32)
        scales, zeros, groups = _groups(parts, wanted)
        decoded: Floats = ((codes - zeros[groups]) * scales[groups]).T
        return decoded

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        scales, zeros, groups = _groups(parts, wanted)
        return group_scales(scales.T, (-scales * zeros).T, groups, BITS)


def _groups(parts: Sequence[Part], wanted: slice) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Scales and zeros `[groups, rows]` of some rows, and the group of each column."""
    weight, zero_words, scales = parts
    columns = weight.shape[0]
    zeros = codes_of(zero_words(), BITS, order=ORDER)[:, wanted].astype(np.float32)
    return floats(scales()[:, wanted]), zeros, np.arange(columns) // (columns // scales.shape[0])
