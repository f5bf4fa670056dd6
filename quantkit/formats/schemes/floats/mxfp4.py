"""MXFP4, as gpt-oss is published: 32 numbers of 4 bits share a power of two.

A stack of matrices `NAME`, `[experts, columns, rows]` where it is not quantized, is two tensors of bytes:

    NAME_blocks  U8 [experts, rows, columns / 32, 16]   two codes a byte, the lower four bits first
    NAME_scales  U8 [experts, rows, columns / 32]       exponents, 127 more than they stand for; 255 is not a number

A code is a sign (bit 3), two bits of exponent and one of mantissa (E2M1): `packing.E2M1` has the sixteen. A number is
`E2M1[code] * 2 ** (scale - 127)`, which bf16 holds exactly: it has two significant bits.

Open Compute Project, "OCP Microscaling Formats (MX) Specification" 1.0, 2023, sections 5.3.3 and 5.4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.schemes.packing import E2M1
from quantkit.formats.schemes.scheme import Part, Scheme

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16


class Mxfp4(Scheme):
    """Stacks of matrices in MXFP4; decoded they stand as gpt-oss stores them unquantized, transposed."""

    known_as = "MXFP4"
    variants = "stacks of experts, as gpt-oss has them"
    kind = "bf16"

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        ends = (name.removesuffix(end) for name in names for end in (BLOCKS, SCALES) if name.endswith(end))
        return {name: (name + BLOCKS, name + SCALES) for name in ends}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        blocks, scales = parts
        if blocks.dtype != "U8" or scales.dtype != "U8":
            raise ValueError(f"its blocks are {blocks.dtype} and its scales {scales.dtype}, not U8")
        if len(blocks.shape) != 4 or blocks.shape[3] != BLOCK_BYTES or blocks.shape[:3] != scales.shape:
            raise ValueError(f"blocks of shape {blocks.shape} do not fit scales of shape {scales.shape}")
        experts, rows, groups, _ = blocks.shape
        return experts, 2 * BLOCK_BYTES * groups, rows

    def decode(self, parts: Sequence[Part], wanted: slice) -> NDArray[np.uint16]:
        blocks, scales = (read(wanted) for read in parts)
        pairs = _pairs()[scales[..., np.newaxis].astype(np.uint16) << 8 | blocks]
        numbers: NDArray[np.uint16] = pairs.view(np.uint16)
        return numbers.reshape(*scales.shape[:2], -1).swapaxes(1, 2)


@cache
def _pairs() -> NDArray[np.uint32]:
    """The two bf16 numbers, in the order of memory, of every byte of codes: at `scale * 256 + byte`."""
    byte = np.arange(256)
    codes = np.stack([byte & 15, byte >> 4], axis=1)
    scales = np.exp2(np.arange(256.0) - 127)
    scales[255] = np.nan
    with np.errstate(over="ignore"):
        numbers = (np.array(E2M1)[codes] * scales[:, np.newaxis, np.newaxis]).astype(np.float32)
    bits: NDArray[Any] = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return bits.view(np.uint32).reshape(-1)
