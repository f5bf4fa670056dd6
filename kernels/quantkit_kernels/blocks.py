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
    """

    name: str
    code: int
    storage: str
    bits: float
    block_bytes: int = 0
    scales: int = 0
    largest_code: int = 0


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("f32", 0, "F32", 32),
            Kind("f16", 1, "F16", 16),
            Kind("bf16", 2, "BF16", 16),
            Kind("int8", 3, "U8", 8.25, block_bytes=264, scales=1, largest_code=127),
            Kind("int4", 4, "U8", 4.5, block_bytes=144, scales=2, largest_code=15),
            Kind("int5", 5, "U8", 5.5, block_bytes=176, scales=2, largest_code=31),
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


def pack_int4(codes: NDArray[np.uint8], scales: NDArray[np.uint8], mins: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes `[R, C]` (0..15), scales and mins `[R, ceil(C/32)]` -> uint8 `[ceil(R/8), ceil(C/32), 144]`."""
    return np.concatenate([_pack_nibbles(codes), _lanes(scales), _lanes(mins.view(np.uint8))], axis=-1)


def unpack_int4(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int8]]:
    """Return codes `[8*tiles, 32*groups]`, scales and mins `[8*tiles, groups]` of blocks, padding included."""
    return _unpack_nibbles(blocks[..., :128]), _rows(blocks[..., 128:136]), _rows(blocks[..., 136:144]).view(np.int8)


def pack_int5(codes: NDArray[np.uint8], scales: NDArray[np.uint8], mins: NDArray[np.int8]) -> NDArray[np.uint8]:
    """As `pack_int4`, of codes 0..31 -> uint8 `[ceil(R/8), ceil(C/32), 176]`."""
    fifth = (_blocked(codes) >> 4).reshape(*_tiles(codes), ROWS, 8, 4)  # tile, group, row, half chunk, byte
    bits = np.packbits(fifth, axis=-2, bitorder="little").reshape(*fifth.shape[:2], 32)
    return np.concatenate([_pack_nibbles(codes & 15), bits, _lanes(scales), _lanes(mins.view(np.uint8))], axis=-1)


def unpack_int5(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int8]]:
    """As `unpack_int4`."""
    tiles, groups, _ = blocks.shape
    bits = np.unpackbits(blocks[..., 128:160].reshape(tiles, groups, ROWS, 1, 4), axis=-2, bitorder="little")
    fifth = bits.transpose(0, 2, 1, 3, 4).reshape(ROWS * tiles, COLUMNS * groups)
    codes = _unpack_nibbles(blocks[..., :128]) | fifth << 4
    return codes, _rows(blocks[..., 160:168]), _rows(blocks[..., 168:176]).view(np.int8)


def pack_int8(codes: NDArray[np.int8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes `[R, C]` (-127..127) and scales `[R, ceil(C/32)]` -> uint8 `[ceil(R/8), ceil(C/32), 264]`."""
    bytes_ = _blocked(codes.view(np.uint8)).reshape(*_tiles(codes), ROWS, 8, 4)  # tile, group, row, chunk, byte
    packed = bytes_.transpose(0, 1, 3, 2, 4).reshape(*bytes_.shape[:2], 256)
    return np.concatenate([packed, _lanes(scales)], axis=-1)


def unpack_int8(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Return codes `[8*tiles, 32*groups]` and scales `[8*tiles, groups]` of blocks, padding included."""
    tiles, groups, _ = blocks.shape
    packed = blocks[..., :256].reshape(tiles, groups, 8, ROWS, 4)  # tile, group, chunk, row, byte
    codes = packed.transpose(0, 3, 1, 2, 4).reshape(ROWS * tiles, COLUMNS * groups)
    return codes.view(np.int8), _rows(blocks[..., 256:264])


def dequantize(
    kind: str, data: NDArray[Any], row_scales: NDArray[np.float32] | None, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the weights that a tensor stands for, f32 of `shape`: what every kernel is measured against."""
    if kind == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if row_scales is None:
        return data.astype(np.float32).reshape(shape)
    scales_of_rows = row_scales.transpose(1, 0, 2).reshape(row_scales.shape[1], -1, 1)
    if kind in UNPACK:
        codes, scales, mins = UNPACK[kind](data)
        offset = np.repeat(scales_of_rows[1] * mins, COLUMNS, axis=1)
    else:
        codes, scales = unpack_int8(data)
        offset = np.float32(0)
    weights = np.repeat(scales_of_rows[0] * scales, COLUMNS, axis=1) * codes + offset
    return np.ascontiguousarray(weights[: shape[0], : shape[1]], np.float32)


PACK = MappingProxyType({"int4": pack_int4, "int5": pack_int5})
UNPACK = MappingProxyType({"int4": unpack_int4, "int5": unpack_int5})
"""Of the kinds that have mins."""


def _pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[R, C]` of 0..15 -> `[tiles, groups, 128]`."""
    halves = _blocked(codes).reshape(*_tiles(codes), ROWS, 4, 2, 4)  # tile, group, row, chunk, half, byte
    packed = halves[..., 0, :] | halves[..., 1, :] << 4
    return packed.transpose(0, 1, 3, 2, 4).reshape(*packed.shape[:2], 128)


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The opposite, padding kept."""
    tiles, groups, _ = packed.shape
    packed = packed.reshape(tiles, groups, 4, ROWS, 4)  # tile, group, chunk, row, byte
    codes = np.stack([packed & 15, packed >> 4], axis=-2)  # ..., row, half, byte
    return codes.transpose(0, 3, 1, 2, 4, 5).reshape(ROWS * tiles, COLUMNS * groups)


def _tiles(codes: NDArray[Any]) -> tuple[int, int]:
    return grid(*codes.shape)


def _blocked(codes: NDArray[Any]) -> NDArray[Any]:
    """`[R, C]` -> `[tiles, groups, 8, 32]`, padded with zeros."""
    rows, columns = codes.shape
    tiles, groups = grid(rows, columns)
    padded = np.pad(codes, ((0, ROWS * tiles - rows), (0, COLUMNS * groups - columns)))
    return np.ascontiguousarray(padded.reshape(tiles, ROWS, groups, COLUMNS).transpose(0, 2, 1, 3))


def _lanes(values: NDArray[Any]) -> NDArray[Any]:
    """`[R, G]` -> `[tiles, G, 8]`, padded with zeros."""
    rows, groups = values.shape
    tiles = grid(rows, 1)[0]
    return np.pad(values, ((0, ROWS * tiles - rows), (0, 0))).reshape(tiles, ROWS, groups).transpose(0, 2, 1)


def _rows(lanes: NDArray[Any]) -> NDArray[Any]:
    """The opposite of `_lanes`, padding kept."""
    return np.ascontiguousarray(lanes.transpose(0, 2, 1)).reshape(-1, lanes.shape[1])
