"""What quantization schemes have in common: codes of a few bits in words, small floats, and scales of blocks.

numpy alone; which tensors hold what is for each scheme to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.tensor import GroupScales
from quantkit_kernels.blocks import COLUMNS, dequantize

Floats = NDArray[np.float32]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of FP4 by their codes: a sign, two bits of exponent and one of mantissa."""
PLAIN = ("F32", "F16", "BF16")
"""The dtypes of scales that `floats` reads."""


def floats(stored: NDArray[Any]) -> Floats:
    """F32, F16 and BF16 as they are stored -> f32; one byte is a power of two (E8M0), and 255 is not a number."""
    if stored.dtype == np.uint8:
        powers: Floats = e8m0()[stored]
        return powers
    return dequantize("bf16" if stored.dtype == np.uint16 else "f32", stored, None, stored.shape)


@cache
def e8m0() -> Floats:
    """The powers of two of 8 bits, by their codes; the last one is not a number."""
    powers: Floats = np.exp2(np.append(np.arange(255.0) - 127, np.nan)).astype(np.float32)
    return powers


@cache
def e4m3() -> Floats:
    """The numbers of FP8 with four bits of exponent, by their codes; the largest of either sign is not a number."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    magnitudes = np.where(exponents, (8 + mantissas) * np.exp2(exponents - 10.0), mantissas * np.exp2(-9.0))
    magnitudes[codes & 127 == 127] = np.nan
    numbers: Floats = np.where(codes & 128, -magnitudes, magnitudes).astype(np.float32)
    return numbers


def codes_of(words: NDArray[Any], bits: int, *, order: Sequence[int] = ()) -> NDArray[np.uint8]:
    """Codes of `bits` bits along the last axis of 32-bit words, the lowest bits first; a word has whole codes alone.

    `order[i]` is the place among the codes of its word to which code `i` belongs.
    """
    places = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    if order:
        places = places[np.argsort(order)]
    words = np.ascontiguousarray(words).view(np.uint32)
    codes: NDArray[np.uint32] = words[..., np.newaxis] >> places & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(*words.shape[:-1], -1)


def stream_of(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes of `bits` bits along the last axis of 32-bit words, as one stream of bits: a code may lie in two words."""
    if 32 % bits == 0:
        return codes_of(words, bits)
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    codes: NDArray[np.uint8] = stream.reshape(*words.shape[:-1], -1, bits) << np.arange(bits, dtype=np.uint8)
    sums: NDArray[np.uint8] = codes.sum(axis=-1, dtype=np.uint8)
    return sums


def nibbles_of(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of four bits along the last axis of bytes, the lower four first."""
    pairs: NDArray[np.uint8] = np.stack([stored & 15, stored >> 4], axis=-1)
    return pairs.reshape(*stored.shape[:-1], -1)


def group_scales(scales: Floats, mins: Floats, groups: NDArray[Any], bits: int) -> GroupScales | None:
    """Scales and mins of a scheme's own groups -> those of each 32 columns.

    Parameters
    ----------
    scales, mins : ndarray
        f32 `[..., rows, groups]`.
    groups : ndarray
        Whole numbers `[columns]`: the group of each column.
    bits : int
        Of a code.

    Returns
    -------
    GroupScales or None
        None where not all of 32 columns are of one group.
    """
    first = groups[::COLUMNS]
    if not np.array_equal(np.repeat(first, COLUMNS)[: len(groups)], groups):
        return None
    return GroupScales(scales[..., first], mins[..., first], bits)


def spread(scales: Floats, shape: Sequence[int], block: tuple[int, int], first: int = 0) -> Floats:
    """Scales of blocks of rows and columns -> one for each number of `shape`, whose first row is row `first`."""
    rows, columns = shape[-2:]
    numbers = np.arange(first, first + rows) // block[0]
    return np.repeat(scales[..., numbers, :], block[1], axis=-1)[..., :columns]


def block_of(shape: Sequence[int], scales: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a matrix for each scale; raises `ValueError` where they do not divide it."""
    fit = len(shape) == len(scales) == 2 and all(scales) and not any(np.remainder(shape, scales))
    if not fit:
        raise ValueError(f"scales of shape {tuple(scales)} do not fit weights of shape {tuple(shape)}")
    return shape[0] // scales[0], shape[1] // scales[1]
