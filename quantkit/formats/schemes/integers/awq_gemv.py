"""AWQ, as AutoAWQ writes it for its two GEMV kernels: rows stay rows, and groups are filled up to whole words.

A matrix `X`, `[rows, columns]`, in the layout `gemv`:

    X.qweight  I32 [rows, columns / 8]   codes of 4 bits, the lowest bits first
    X.qzeros   I32 [rows, words]         zeros of the groups, as the codes; more than there are groups
    X.scales   F16, BF16 or F32 [rows, 8 * words]

A number is `scale * (code - zero)`. In the layout `gemv_fast`, four rows are interleaved:

    X.qweight  I16 [rows / 4, columns]   64 columns of four rows in 64 words; of 32 columns, every eighth is together
    X.qzeros   F16, BF16 or F32 [8 * words, rows]   `-scale * zero`
    X.scales   as the zeros

A number is `scale * code + zero`. config.json says how many columns a group has.

AutoAWQ, `awq/modules/linear/gemv.py` and `gemv_fast.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.schemes.packing import PLAIN, Floats, codes_of, floats, group_scales
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

BITS, PER_WORD = 4, 8
INTERLEAVED, STRIDE = 4, 64
"""Rows that share words, and columns after which the next one of them comes."""


class AwqGemv(Scheme):
    """Matrices in the formats of AutoAWQ's GEMV kernels.

    Parameters
    ----------
    group_size : int
        Columns that share a scale; -1 for all.
    fast : bool
        The layout is `gemv_fast`.
    """

    known_as = "AWQ"
    variants = "4 bits, in the layouts of AutoAWQ's GEMV kernels"
    kind = "f32"

    def __init__(self, group_size: int, *, fast: bool = False) -> None:
        self.group_size, self.fast = group_size, fast

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        modules = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
        return {f"{it}.weight": (f"{it}.qweight", f"{it}.qzeros", f"{it}.scales") for it in modules}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, zeros, scales = parts
        if weight.dtype != ("I16" if self.fast else "I32") or scales.dtype not in PLAIN:
            raise ValueError(f"its parts are {', '.join(part.dtype for part in parts)}")
        if not all(len(part.shape) == 2 for part in parts):
            raise ValueError(f"its codes have shape {weight.shape}")
        if self.fast:
            rows, columns, held = INTERLEAVED * weight.shape[0], weight.shape[1], scales.shape[::-1]
            fit = (zeros.shape, zeros.dtype in PLAIN, columns % STRIDE) == (scales.shape, True, 0)
        else:
            rows, columns, held = weight.shape[0], PER_WORD * weight.shape[1], scales.shape
            fit = (zeros.dtype, (zeros.shape[0], PER_WORD * zeros.shape[1])) == ("I32", scales.shape)
        size = self._size(columns)
        if not fit or held[0] != rows or not size or columns % size or columns // size > held[1]:
            raise ValueError(
                f"codes of shape {weight.shape} do not fit scales {scales.shape} and zeros {zeros.dtype} {zeros.shape}"
            )
        return rows, columns

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        rows, _ = self.shape(parts)
        weight = parts[0]
        codes = _interleaved(weight, wanted.indices(rows)[:2]) if self.fast else codes_of(weight(wanted), BITS)
        scales, zeros = self._groups(parts, wanted)
        grouped = codes.reshape(*scales.shape, -1).astype(np.float32)
        factors, added = scales[..., np.newaxis], zeros[..., np.newaxis]
        numbers: Floats = grouped * factors + added if self.fast else (grouped - added) * factors
        return numbers.reshape(codes.shape)

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        scales, zeros = self._groups(parts, wanted)
        groups = np.arange(self.shape(parts)[1]) // self._size(self.shape(parts)[1])
        return group_scales(scales, zeros if self.fast else -scales * zeros, groups, BITS)

    def _groups(self, parts: Sequence[Part], wanted: slice) -> tuple[Floats, Floats]:
        """Scales and zeros `[rows, groups]` of some rows, as they are stored."""
        _, columns = self.shape(parts)
        _, zeros, scales = parts
        groups = slice(columns // self._size(columns))
        if self.fast:
            return floats(scales(groups)[:, wanted]).T, floats(zeros(groups)[:, wanted]).T
        return floats(scales(wanted)[:, groups]), codes_of(zeros(wanted), BITS)[:, groups].astype(np.float32)

    def _size(self, columns: int) -> int:
        return columns if self.group_size == -1 else self.group_size


def _interleaved(stored: Part, rows: tuple[int, int]) -> NDArray[np.uint8]:
    """The codes of the rows from the first to before the last."""
    first, last = rows
    begin = first // INTERLEAVED
    words = stored(slice(begin, -(-last // INTERLEAVED))).view(np.uint16)
    codes = (words[..., np.newaxis] >> np.arange(0, 16, BITS, dtype=np.uint16) & np.uint16(15)).astype(np.uint8)
    strides = codes.reshape(len(words), -1, INTERLEAVED, STRIDE // 32, 8, 4).transpose(0, 2, 1, 3, 5, 4)
    return strides.reshape(-1, words.shape[1])[first - INTERLEAVED * begin : last - INTERLEAVED * begin]
