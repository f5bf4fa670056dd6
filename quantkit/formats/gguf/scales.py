"""Scales of GGUF's blocks: of those types of which all 32 columns that share a packed scale share one here as well.

A number of these types is `scale * code + min`, and the formulas are ggml's (`ggml-quants.c`). Types with groups of 16
columns (Q2_K, Q3_K, Q6_K) and those whose codes stand for numbers of a table (IQ, MXFP4) have none. Numbers themselves
are de-quantized by the `gguf` package, see `checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.tensor import GroupScales

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]
"""Bytes of blocks, `[blocks, bytes]`."""


class BlockType(NamedTuple):
    """Where a type of blocks has its scales."""

    bits: int
    """Of a code."""
    read: Callable[[Blocks], tuple[Floats, Floats]]
    """Bytes of blocks -> scales and mins f32 `[blocks, groups of 32 columns]`."""


def _halves(blocks: Blocks, begin: int) -> Floats:
    """The f16 number that begins at a byte of each block, `[blocks, 1]`."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view(np.float16).astype(np.float32)


def _symmetric(blocks: Blocks, begin: int, zero: int, groups: int = 1) -> tuple[Floats, Floats]:
    """One scale for a block, and codes that are `zero` more than they stand for."""
    scales = np.repeat(_halves(blocks, begin), groups, axis=1)
    return scales, scales * np.float32(-zero)


def _with_mins(blocks: Blocks) -> tuple[Floats, Floats]:
    """Two f16: a scale and a min."""
    return _halves(blocks, 0), _halves(blocks, 2)


def _k(blocks: Blocks) -> tuple[Floats, Floats]:
    """Two f16, and for each of eight groups two factors of 6 bits in 12 bytes.

    Byte `i` of the first four has the scale of group `i` in its lower 6 bits, byte `4 + i` the min. Byte `8 + i` has
    the lower 4 bits of group `4 + i`: of the scale, then of the min; their upper 2 bits stand above those of group `i`.
    """
    low_scales, low_mins, low_bits = np.split(blocks[:, 4:16], 3, axis=1)
    scales = np.hstack([low_scales & 63, low_bits & 15 | low_scales >> 6 << 4])
    mins = np.hstack([low_mins & 63, low_bits >> 4 | low_mins >> 6 << 4])
    return _halves(blocks, 0) * scales, -_halves(blocks, 2) * mins


TYPES: Mapping[str, BlockType] = MappingProxyType(
    {
        "Q4_0": BlockType(4, partial(_symmetric, begin=0, zero=8)),
        "Q4_1": BlockType(4, _with_mins),
        "Q4_K": BlockType(4, _k),
        "Q5_0": BlockType(5, partial(_symmetric, begin=0, zero=16)),
        "Q5_1": BlockType(5, _with_mins),
        "Q5_K": BlockType(5, _k),
        "Q8_0": BlockType(8, partial(_symmetric, begin=0, zero=128)),
        "TQ1_0": BlockType(2, partial(_symmetric, begin=52, zero=1, groups=8)),
        "TQ2_0": BlockType(2, partial(_symmetric, begin=64, zero=1, groups=8)),
    }
)
"""Name of a type in ggml -> its scales."""


def group_scales(name: str, blocks: Blocks, shape: tuple[int, ...]) -> GroupScales:
    """Return the scales of a tensor of a type of `TYPES`, by its blocks and its shape."""
    scales, mins = TYPES[name].read(blocks)
    return GroupScales(scales.reshape(*shape[:-1], -1), mins.reshape(*shape[:-1], -1), TYPES[name].bits)
