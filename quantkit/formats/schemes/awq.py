"""AWQ, as AutoAWQ writes it for its GEMM kernels: codes of 4 bits, and a scale and a zero for each group.

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
from quantkit.formats.schemes.packing import PLAIN, codes_of, floats
from quantkit.formats.schemes.scheme import Part, Scheme

BITS, PER_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of its eight rows each code of a word belongs to, the lowest bits first."""


class Awq(Scheme):
    """Matrices in the format of AutoAWQ's GEMM kernels."""

    known_as = "AWQ"
    variants = "4 bits, in the layout of AutoAWQ's GEMM kernels"
    kind = "f32"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Awq:
        bits = config.get("bits", config.get("w_bit", BITS))
        version = str(config.get("version", "gemm")).lower()
        if bits != BITS or version not in ("gemm", "exllama"):
            raise UnsupportedError(
                f"quantization_config: {bits!r:.20} bits and version {version!r:.60} are not supported"
            )
        return cls()

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

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.float32]:
        words, zero_words, scales = (part() for part in parts)
        codes, zeros = (codes_of(each, BITS, order=ORDER)[:, wanted] for each in (words, zero_words))
        groups = np.arange(len(codes)) // (len(codes) // len(scales))
        numbers = (codes.astype(np.float32) - zeros.astype(np.float32)[groups]) * floats(scales[:, wanted])[groups]
        decoded: NDArray[np.float32] = numbers.T
        return decoded
