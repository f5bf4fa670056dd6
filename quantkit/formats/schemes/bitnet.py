"""BitNet b1.58: every weight of a linear layer is -1, 0 or 1, times one number for the whole matrix.

A matrix `X`, `[rows, columns]`, is stored in one of two ways. Packed, four rows share a byte:

    X.weight        U8 [rows / 4, columns]   codes 0, 1, 2 for -1, 0, 1: bits `2 i` and `2 i + 1` of row `r` belong to
                                             row `i * rows / 4 + r`
    X.weight_scale  BF16, F16 or F32 [1]     multiplies it (`linear_class` autobitlinear) or divides it (bitlinear)

Online, as the weights that training keeps (`quantization_mode`): `X.weight` holds any numbers, and those that the model
computes with are `round(w / m)` within -1 and 1, times `m`, the mean of all `|w|`.

Both are decoded to f32. The activations that the original rounds to 8 bits, by one scale for each token, are rounded
here by one for each 32 columns, and only where weights are packed.

Ma et al., "BitNet b1.58 2B4T Technical Report", 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import PLAIN, Floats, floats, group_scales
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

WEIGHT, SCALE = ".weight", ".weight_scale"
LINEAR = "_proj.weight"
"""How names of linear layers end in online checkpoints."""
BITS, ROWS_PER_BYTE = 2, 4
SMALLEST_MEAN = 1e-5


class Bitnet(Scheme):
    """Ternary matrices.

    Parameters
    ----------
    online : bool
        Weights are stored as training keeps them.
    divides : bool
        A packed matrix is divided by its scale.
    """

    known_as = "BitNet b1.58"
    variants = "packed, or as training keeps weights"
    kind = "f32"

    def __init__(self, *, online: bool = False, divides: bool = False) -> None:
        self.online, self.divides = online, divides

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Bitnet:
        linear, mode = config.get("linear_class", "bitlinear"), config.get("quantization_mode", "offline")
        if linear not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
            raise UnsupportedError(
                f"quantization_config: linear_class {linear!r:.60} and quantization_mode {mode!r:.60} are not supported"
            )
        for field in ("use_rms_norm", "modules_to_not_convert"):
            if config.get(field):
                raise UnsupportedError(f"quantization_config: {field} is {config[field]!r:.60}, which is not supported")
        return cls(online=mode == "online" and linear == "autobitlinear", divides=linear == "bitlinear")

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        if self.online:
            return {name: (name,) for name in names if name.endswith(LINEAR)}
        modules = [name.removesuffix(SCALE) for name in names if name.endswith(SCALE)]
        return {module + WEIGHT: (module + WEIGHT, module + SCALE) for module in modules}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, *scales = parts
        for scale in scales:
            if scale.dtype not in PLAIN or scale.shape not in ((), (1,)):
                raise ValueError(f"its scale is {scale.dtype} of shape {scale.shape}, not one number")
        if len(weight.shape) != 2 or weight.dtype not in (PLAIN if self.online else ("U8",)):
            raise ValueError(f"its weights are {weight.dtype} of shape {weight.shape}")
        rows, columns = weight.shape
        return (rows if self.online else ROWS_PER_BYTE * rows), columns

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        stored, scale = parts[0](), self._scale(parts)
        if self.online:
            rounded: Floats = np.clip(np.rint(floats(stored)[wanted] / scale), -1, 1) * scale
            return rounded
        codes = np.concatenate([stored >> 2 * place & 3 for place in range(ROWS_PER_BYTE)])[wanted]
        ternary: Floats = (codes.astype(np.float32) - 1) * scale
        return ternary

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        rows, columns = self.shape(parts)
        scales = np.full((len(range(rows)[wanted]), 1), self._scale(parts))
        return group_scales(scales, -scales, np.zeros(columns, np.intp), BITS)

    def _scale(self, parts: Sequence[Part]) -> np.float32:
        """The number that all of a matrix are multiplied by."""
        if self.online:
            return np.float32(max(np.abs(floats(parts[0]())).mean(dtype=np.float64), SMALLEST_MEAN))
        (scale,) = floats(parts[1]()).reshape(-1)
        return np.float32(1) / scale if self.divides else scale
