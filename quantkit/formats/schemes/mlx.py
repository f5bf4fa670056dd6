"""MLX's own quantization, as mlx-lm's converted models have it: codes in words, and a scale and a bias for each group.

A matrix `X`, or a stack of matrices, is three tensors:

    X.weight  U32 [..., rows, columns * bits / 32]   codes of 2, 3, 4, 5, 6 or 8 bits, a stream of bits
    X.scales  F16, BF16 or F32 [..., rows, groups]
    X.biases  as the scales

A number is `scale * code + bias`. config.json has no name for it: `quantization` says `group_size` and `bits`, and may
say other bits for some modules; those follow from the shapes.

MLX, documentation of `mlx.core.quantize`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import PLAIN, floats, stream_of
from quantkit.formats.schemes.scheme import Part, Scheme

BITS = (2, 3, 4, 5, 6, 8)


class Mlx(Scheme):
    """Matrices as MLX packs them.

    Parameters
    ----------
    group_size : int
        Columns that share a scale.
    """

    kind = "f32"

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Mlx:
        size, mode = config.get("group_size"), config.get("mode", "affine")
        if type(size) is not int or size < 1 or mode != "affine":
            raise UnsupportedError(f"quantization: groups of {size!r:.20} and mode {mode!r:.60} are not supported")
        for module, own in config.items():
            if isinstance(own, dict) and (own.get("group_size", size), own.get("mode", mode)) != (size, mode):
                raise UnsupportedError(f"quantization: {module!r:.100} has other groups, which is not supported")
        return cls(size)

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        modules = [name.removesuffix(".scales") for name in names if name.endswith(".scales")]
        return {f"{it}.weight": (f"{it}.weight", f"{it}.scales", f"{it}.biases") for it in modules}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, scales, biases = parts
        if weight.dtype != "U32" or scales.dtype not in PLAIN or biases.dtype not in PLAIN:
            raise ValueError(f"its parts are {', '.join(part.dtype for part in parts)}")
        columns = self.group_size * scales.shape[-1] if scales.shape else 0
        bits, rest = divmod(32 * weight.shape[-1], columns) if columns else (0, 0)
        if scales.shape != biases.shape or scales.shape[:-1] != weight.shape[:-1] or bits not in BITS or rest:
            raise ValueError(f"words of shape {weight.shape} do not fit scales of shape {scales.shape}")
        return (*weight.shape[:-1], columns)

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.float32]:
        words, scales, biases = (part(wanted) for part in parts)
        bits = 32 * words.shape[-1] // (self.group_size * scales.shape[-1])
        codes = stream_of(words, bits).reshape(*scales.shape, self.group_size).astype(np.float32)
        numbers = codes * floats(scales)[..., np.newaxis] + floats(biases)[..., np.newaxis]
        return numbers.reshape(*scales.shape[:-1], -1)
