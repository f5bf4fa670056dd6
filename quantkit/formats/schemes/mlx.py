"""MLX's own quantization, as mlx-lm's converted models have it: codes in words, and a scale and a bias for each group.

A matrix `X`, or a stack of matrices, is three tensors:

    X.weight  U32 [..., rows, columns * bits / 32]   codes of 1, 2, 3, 4, 5, 6 or 8 bits, a stream of bits
    X.scales  F16, BF16 or F32 [..., rows, groups]
    X.biases  as the scales; X.qbiases where transformers wrote it (`quant_method` metal)

A number is `scale * code + bias`. In the modes mxfp4, mxfp8 and nvfp4 codes are floats, and a number is `scale * code`:

    X.scales  U8 [..., rows, groups]: powers of two for 32 columns each; in nvfp4 FP8, for 16 columns each

config.json has no name for it: `quantization` says `group_size`, `bits` and `mode`, and may say others for modules.
Bits follow from the shapes, and so do these modes.

MLX, documentation of `mlx.core.quantize`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError
from quantkit.formats.schemes.packing import E2M1, PLAIN, Floats, e4m3, e8m0, floats, group_scales, stream_of
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

BITS = (1, 2, 3, 4, 5, 6, 8)
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
WEIGHT, SCALES, BIASES = ".weight", ".scales", (".biases", ".qbiases")


class Mode(NamedTuple):
    """A mode whose codes are floats: columns that share a scale, and the numbers of codes and of scales."""

    group_size: int
    numbers: Floats
    scales: Floats


class Mlx(Scheme):
    """Matrices as MLX packs them.

    Parameters
    ----------
    group_size : int
        Columns that share a scale.
    others : mapping of str to int
        The same, of modules that have others.
    """

    known_as = "MLX"
    variants = "1 to 8 bits, MXFP4, MXFP8, NVFP4, modules that differ"
    kind = "f32"

    def __init__(self, group_size: int, others: Mapping[str, int] | None = None) -> None:
        self.group_size, self.others = group_size, others or {}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Mlx:
        modules = {name: {**config, **own} for name, own in config.items() if isinstance(own, dict)}
        for name, own in {"": config, **modules}.items():
            size, mode = own.get("group_size"), own.get("mode", MODES[0])
            if type(size) is not int or size < 1 or mode not in MODES:
                said = f"groups of {size!r:.20} and mode {mode!r:.60}{name and f' of {name!r:.100}'}"
                raise UnsupportedError(f"quantization: {said} are not supported")
        return cls(config["group_size"], {name: said["group_size"] for name, said in modules.items()})

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        held = set(names)
        modules = (name.removesuffix(SCALES) for name in held if name.endswith(SCALES))
        return {
            it + WEIGHT: (it + WEIGHT, it + SCALES, *(it + end for end in BIASES if it + end in held)) for it in modules
        }

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        weight, scales, *biases = parts
        if weight.dtype != "U32" or scales.dtype not in (*PLAIN, "U8") or (scales.dtype == "U8") == bool(biases):
            raise ValueError(f"its parts are {', '.join(f'{part.name!r} of {part.dtype}' for part in parts)}")
        if biases and (biases[0].shape != scales.shape or biases[0].dtype not in PLAIN):
            raise ValueError(f"its biases are {biases[0].dtype} of shape {biases[0].shape}, its scales {scales.shape}")
        if len(weight.shape) < 2 or weight.shape[:-1] != scales.shape[:-1] or not scales.shape[-1]:
            raise ValueError(f"words of shape {weight.shape} do not fit scales of shape {scales.shape}")
        columns = scales.shape[-1] * self._group_size(weight, scales)
        if divmod(32 * weight.shape[-1], columns) not in ((bits, 0) for bits in BITS):
            raise ValueError(f"words of shape {weight.shape} do not fit scales of shape {scales.shape}")
        return (*weight.shape[:-1], columns)

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.float32]:
        weight, scales, *biases = parts
        size = self._group_size(weight, scales)
        codes = stream_of(weight(wanted), self._bits(weight, scales))
        codes = codes.reshape(*codes.shape[:-1], -1, size)
        if biases:
            numbers = codes.astype(np.float32) * floats(scales(wanted))[..., np.newaxis]
            numbers += floats(biases[0](wanted))[..., np.newaxis]
        else:
            mode = _mode(weight, scales)
            numbers = mode.numbers[codes] * mode.scales[scales(wanted)][..., np.newaxis]
        return numbers.reshape(*codes.shape[:-2], -1)

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        weight, scales, *biases = parts
        if not biases:
            return None
        size = self._group_size(weight, scales)
        groups = np.arange(size * scales.shape[-1]) // size
        return group_scales(floats(scales(wanted)), floats(biases[0](wanted)), groups, self._bits(weight, scales))

    def _bits(self, weight: Part, scales: Part) -> int:
        return 32 * weight.shape[-1] // (self._group_size(weight, scales) * scales.shape[-1])

    def _group_size(self, weight: Part, scales: Part) -> int:
        if scales.dtype == "U8":
            return _mode(weight, scales).group_size
        return self.others.get(weight.name.removesuffix(WEIGHT), self.group_size)


def _mode(weight: Part, scales: Part) -> Mode:
    """The mode of a matrix whose codes are floats, by the bits that share a scale; raises `ValueError` for others."""
    fp4 = np.array(E2M1, np.float32)
    modes = {4 * 16: Mode(16, fp4, e4m3()), 4 * 32: Mode(32, fp4, e8m0()), 8 * 32: Mode(32, e4m3(), e8m0())}
    bits, rest = divmod(32 * weight.shape[-1], scales.shape[-1])
    if rest or bits not in modes:
        raise ValueError(f"words of shape {weight.shape} do not fit scales of shape {scales.shape}")
    return modes[bits]
