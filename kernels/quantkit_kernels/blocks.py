"""Block kinds: what a packed weight's bytes mean. This file is the specification; it needs numpy alone.

Everything is little-endian. A packed matrix is a grid of blocks of 8 rows x 32 columns: the 8 lanes of a 256-bit
register each own a row, so a dot product needs no horizontal sums and one broadcast activation serves eight rows. The
bytes on disk are the kernels' layout. Rows and columns that do not fill a block are padded with zeros; the true shape
stands elsewhere.

`int4`, 144 bytes, 4.5 bits a weight::

    w[r, k] = row_scale[r] * scale[r, g] * code[r, k] + row_min[r] * min[r, g]        g = k // 32

    byte 32*c + 4*r + j   c 0..3, r 0..7, j 0..3      bits 0..3  code[r, 8*c + j]         codes 0..15
                                                      bits 4..7  code[r, 8*c + 4 + j]
    byte 128 + r          scale[r, g]    u8  0..255
    byte 136 + r          min[r, g]      i8  -127..127
    row scales            f32 [2, 8]     row_scale of the 8 rows, then row_min

`int5`, 176 bytes, 5.5 bits a weight::

    w[r, k]  as of int4                                                                   codes 0..31

    byte 32*c + 4*r + j   c 0..3, r 0..7, j 0..3      as of int4, the low 4 bits of each code
    byte 128 + 4*r + j    r 0..7, j 0..3              bit 2*c + h   the fifth bit of code[r, 8*c + 4*h + j]    h 0..1
    byte 160 + r          scale[r, g]    u8  0..255
    byte 168 + r          min[r, g]      i8  -127..127
    row scales            f32 [2, 8]     as of int4

`int6`, 208 bytes, 6.5 bits a weight::

    w[r, k]  as of int4                                                                   codes 0..63

    byte 32*c + 4*r + j   c 0..3, r 0..7, j 0..3      as of int4, the low 4 bits of each code
    byte 128 + 32*p + 4*r + j   p 0..1                bits 2*i, 2*i + 1   the high 2 bits of code[r, 16*p + 4*i + j]
    byte 192 + r          scale[r, g]    u8  0..255                                                           i 0..3
    byte 200 + r          min[r, g]      i8  -127..127
    row scales            f32 [2, 8]     as of int4

`int8`, 264 bytes, 8.25 bits a weight::

    w[r, k] = row_scale[r] * scale[r, g] * code[r, k]

    byte 32*c + 4*r + j   c 0..7, r 0..7, j 0..3      code[r, 4*c + j]    i8  -127..127, never -128
    byte 256 + r          scale[r, g]    u8  0..255
    row scales            f32 [1, 8]

`f16`, `bf16` and `f32` are plain row-major numbers; numpy has no bf16, so its bit patterns are carried as uint16.

`linear/packed.py` and `rows/embedding.py` compute with these bytes, `packing/` finds codes and scales; all are tested
against the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 8, 32
"""Rows and columns of a block."""


@dataclass(frozen=True)
class Kind:
    """How the numbers of a tensor are stored.

    Attributes
    ----------
    code : int
        Names the kind in the interpreter's table.
    storage : str
        dtype of its data in a safetensors file.
    bits : float
        Bits of a weight, without row scales.
    block_bytes : int
        Bytes of a block; 0 for plain numbers.
    scales : int
        f32 numbers for each row: of 2, the second is the unit of its mins.
    largest_code : int
        Of blocks. With mins, the least is 0; without, as far below 0.
    code_bits : tuple of int
        Of blocks: the bits of a code that lie together, the lowest first. Each makes planes of 32 bytes, the first one
        of columns 0 to 3, then 4 to 7, ... in rising bits, the next one of those behind them.
    """

    name: str
    code: int
    storage: str
    bits: float
    block_bytes: int = 0
    scales: int = 0
    largest_code: int = 0
    code_bits: tuple[int, ...] = ()


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("f32", 0, "F32", 32),
            Kind("f16", 1, "F16", 16),
            Kind("bf16", 2, "BF16", 16),
            Kind("int8", 3, "U8", 8.25, block_bytes=264, scales=1, largest_code=127, code_bits=(8,)),
            Kind("int4", 4, "U8", 4.5, block_bytes=144, scales=2, largest_code=15, code_bits=(4,)),
            Kind("int5", 5, "U8", 5.5, block_bytes=176, scales=2, largest_code=31, code_bits=(4, 1)),
            Kind("int6", 6, "U8", 6.5, block_bytes=208, scales=2, largest_code=63, code_bits=(4, 2)),
        )
    }
)
assert all(8 * kind.block_bytes == kind.bits * ROWS * COLUMNS for kind in KINDS.values() if kind.block_bytes)


def grid(rows: int, columns: int) -> tuple[int, int]:
    """Blocks down and across that hold `rows` x `columns` weights."""
    return -(-rows // ROWS), -(-columns // COLUMNS)


def expected_shapes(kind: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Shapes of a tensor's data and row scales (None for plain numbers), by its true shape.

    Raises `ValueError` for a block kind whose shape is not `(rows, columns)`.
    """
    spec = KINDS[kind]
    if not spec.block_bytes:
        return shape, None
    if len(shape) != 2:
        raise ValueError(f"{kind} holds matrices, not shape {shape}")
    tiles, groups = grid(*shape)
    return (tiles, groups, spec.block_bytes), (tiles, spec.scales, ROWS)


def nbytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor by its true shape, padding and row scales included."""
    data, row_scales = expected_shapes(kind, shape)
    bits = 8 if row_scales else int(KINDS[kind].bits)
    return math.prod(data) * bits // 8 + (4 * math.prod(row_scales) if row_scales else 0)


def pack(
    kind: str, codes: NDArray[Any], scales: NDArray[np.uint8], mins: NDArray[np.int8] | None = None
) -> NDArray[np.uint8]:
    """Pack codes into the blocks of a kind.

    Parameters
    ----------
    kind : {"int4", "int5", "int6", "int8"}
    codes : ndarray
        `[R, C]`: uint8, 0 to the largest code, or int8 of a kind without mins.
    scales, mins : ndarray
        uint8 and int8 `[R, ceil(C/32)]`; no mins for a kind without.

    Returns
    -------
    ndarray
        uint8 `[ceil(R/8), ceil(C/32), block_bytes]`.
    """
    left, parts = _blocked(codes.view(np.uint8)), []
    for bits in KINDS[kind].code_bits:
        parts.append(_planes(left & (1 << bits) - 1, bits))
        left = left >> bits
    lanes = (_lanes(each.view(np.uint8)) for each in (scales, mins) if each is not None)
    return np.concatenate([*parts, *lanes], axis=-1)


def unpack(kind: str, blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int8] | None]:
    """Return codes `[8*tiles, 32*groups]`, scales and mins (or None) `[8*tiles, groups]`, padding included."""
    codes, place, shift = np.zeros((*blocks.shape[:2], 256), np.uint8), 0, 0
    for bits in KINDS[kind].code_bits:
        codes |= _of_planes(blocks[..., place : place + 32 * bits], bits) << shift
        place, shift = place + 32 * bits, shift + bits
    scales, mins = _rows(blocks[..., place : place + 8]), _rows(blocks[..., place + 8 :]).view(np.int8)
    return (_in_rows(codes), scales, mins) if KINDS[kind].scales == 2 else (_in_rows(codes).view(np.int8), scales, None)


def dequantize(
    kind: str, data: NDArray[Any], row_scales: NDArray[np.float32] | None, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the weights that a tensor stands for, f32 of `shape`: what every kernel is measured against."""
    if kind == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if row_scales is None:
        return data.astype(np.float32).reshape(shape)
    scales_of_rows = row_scales.transpose(1, 0, 2).reshape(row_scales.shape[1], -1, 1)
    codes, scales, mins = unpack(kind, data)
    offset = np.float32(0) if mins is None else np.repeat(scales_of_rows[1] * mins, COLUMNS, axis=1)
    weights = np.repeat(scales_of_rows[0] * scales, COLUMNS, axis=1) * codes + offset
    return np.ascontiguousarray(weights[: shape[0], : shape[1]], np.float32)


WITH_MINS = tuple(name for name, kind in KINDS.items() if kind.scales == 2)
"""Kinds that have mins."""


def _planes(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Some bits of each code, `[tiles, groups, 256]` -> `[tiles, groups, 32 * bits]`."""
    parts = values.reshape(*values.shape[:2], bits, 8 // bits, 32)
    shifts = np.arange(0, 8, bits, np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, axis=-2).reshape(*values.shape[:2], 32 * bits)


def _of_planes(planes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The opposite."""
    shifts = np.arange(0, 8, bits, np.uint8)[:, None]
    parts = planes.reshape(*planes.shape[:2], bits, 1, 32) >> shifts
    return (parts & (1 << bits) - 1).reshape(*planes.shape[:2], 256)


def _blocked(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[R, C]` -> `[tiles, groups, 256]`: 4 columns of each row, then the next 4; padded with zeros."""
    rows, columns = codes.shape
    tiles, groups = grid(rows, columns)
    padded = np.pad(codes, ((0, ROWS * tiles - rows), (0, COLUMNS * groups - columns)))
    parts = padded.reshape(tiles, ROWS, groups, 8, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(parts).reshape(tiles, groups, ROWS * COLUMNS)


def _in_rows(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The opposite, padding kept."""
    tiles, groups, _ = codes.shape
    parts = codes.reshape(tiles, groups, 8, ROWS, 4).transpose(0, 3, 1, 2, 4)
    return parts.reshape(ROWS * tiles, COLUMNS * groups)


def _lanes(values: NDArray[Any]) -> NDArray[Any]:
    """`[R, G]` -> `[tiles, G, 8]`, padded with zeros."""
    rows, groups = values.shape
    tiles = grid(rows, 1)[0]
    return np.pad(values, ((0, ROWS * tiles - rows), (0, 0))).reshape(tiles, ROWS, groups).transpose(0, 2, 1)


def _rows(lanes: NDArray[Any]) -> NDArray[Any]:
    """The opposite of `_lanes`, padding kept."""
    return np.ascontiguousarray(lanes.transpose(0, 2, 1)).reshape(-1, lanes.shape[1])
