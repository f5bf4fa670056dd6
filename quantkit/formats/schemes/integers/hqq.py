"""HQQ, as transformers saves it: codes of 1 to 8 bits, and a scale and a zero for each group.

The numbers of a matrix `X`, `[rows, columns]`, one row after the other, are put in lines, either one for each group
(axis 1), or one for each place in a group (axis 0). Lines are packed, those of the first half (third, ...) into the
upper bits, as `X.packing` says:

    X.W_q      U8 or I32 [packed lines, length], or the same bytes as floats (`view_as_float`)
    X.packing  U8: a text, 8bit_u8, 4bit_u8, 3bit_32 (ten lines in one, the last may be missing), 2bit_u8 or 1bit_u8
    X.shape    I64 [2]: rows and columns
    X.scale    F16, BF16 or F32 [lines, 1] (axis 1) or [1, length] (axis 0)
    X.zero     as the scale

A number is `scale * (code - zero)`. The library computes it in `X.compute_dtype`; here it is f32.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.schemes.packing import PLAIN, Floats, floats, group_scales
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.tensor import GroupScales

CODES, PARTS = ".W_q", (".scale", ".zero", ".shape", ".packing")
FLOAT_BYTES = MappingProxyType({"F16": 2, "BF16": 2, "F32": 4})
"""Dtypes that packed lines may be seen as -> bytes of a number."""


class Packing(NamedTuple):
    """How lines are packed: into which dtype of how many bytes, how many bits of each, and how many in one."""

    dtype: str
    bytes_: int
    bits: int
    lines: int


PACKINGS = MappingProxyType(
    {
        b"8bit_u8": Packing("U8", 1, 8, 1),
        b"4bit_u8": Packing("U8", 1, 4, 2),
        b"3bit_32": Packing("I32", 4, 3, 10),
        b"2bit_u8": Packing("U8", 1, 2, 4),
        b"1bit_u8": Packing("U8", 1, 1, 8),
    }
)
TEXTS = {(len(text),) for text in PACKINGS}


class Lines(NamedTuple):
    """What the parts of a matrix say of it."""

    shape: tuple[int, int]
    packing: Packing
    length: int


class Hqq(Scheme):
    """Matrices as HQQ packs them."""

    known_as = "HQQ"
    variants = "1 to 8 bits, groups along both axes"
    kind = "f32"
    ignored = (
        *(".nbits", ".group_size", ".axis", ".channel_wise", ".optimize", ".round_zero", ".view_as_float"),
        *(".unpack_view_dtype", ".compute_dtype", ".quant_scale", ".quant_zero", ".offload_meta"),
        *(".encoded_state_dict", ".stores_quant_config"),
    )

    def encoded(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        modules = (name.removesuffix(CODES) for name in names if name.endswith(CODES))
        return {f"{it}.weight": (it + CODES, *(it + part for part in PARTS)) for it in modules}

    def shape(self, parts: Sequence[Part]) -> tuple[int, ...]:
        return _lines(parts).shape

    def decode(self, parts: Sequence[Part], wanted: slice) -> Floats:
        words, scale, zero, *_ = parts
        (rows, columns), packing, length = _lines(parts)
        first, last = (columns * row for row in wanted.indices(rows)[:2])
        lines = slice(first // length, -(-last // length))
        codes = _codes(words, packing, np.arange(lines.start, lines.stop)).astype(np.float32)
        of_codes = lines if scale.shape[1] == 1 else slice(None)
        numbers: Floats = ((codes - floats(zero(of_codes))) * floats(scale(of_codes))).reshape(-1)
        begin = lines.start * length
        return numbers[first - begin : last - begin].reshape(-1, columns)

    def group_scales(self, parts: Sequence[Part], wanted: slice) -> GroupScales | None:
        _, scale, zero, *_ = parts
        (rows, columns), packing, length = _lines(parts)
        if scale.shape[1] != 1 or columns % length:
            return None
        of_row = columns // length
        lines = slice(*(of_row * row for row in wanted.indices(rows)[:2]))
        scales, zeros = (floats(part(lines)).reshape(-1, of_row) for part in (scale, zero))
        return group_scales(scales, -scales * zeros, np.arange(columns) // length, packing.bits)


def _lines(parts: Sequence[Part]) -> Lines:
    """Read what the small parts say; raises `ValueError` where the others do not fit them."""
    words, scale, zero, shape, text = parts
    packing = PACKINGS.get(text().tobytes()) if text.dtype == "U8" and text.shape in TEXTS else None
    if packing is None:
        raise ValueError(f"its packing is {text.dtype} of shape {text.shape}, which names none of those that are known")
    if shape.dtype != "I64" or shape.shape != (2,) or min(sides := shape().tolist()) < 1:
        raise ValueError("its shape is not two numbers above zero")
    count, of_word = math.prod(sides), FLOAT_BYTES.get(words.dtype, packing.bytes_)
    if words.dtype not in (packing.dtype, *FLOAT_BYTES) or len(words.shape) != 2 or 0 in words.shape:
        raise ValueError(f"its codes are {words.dtype} of shape {words.shape}")
    length = words.shape[1] * of_word // packing.bytes_
    lines, rest = divmod(count, length)
    if rest or words.shape[0] != -(-lines // packing.lines):
        raise ValueError(f"its codes are {words.dtype} of shape {words.shape}, for a matrix of shape {tuple(sides)}")
    for part in (scale, zero):
        if part.dtype not in PLAIN or part.shape not in ((lines, 1), (1, length)) or part.shape != scale.shape:
            raise ValueError(f"{part.name!r} is {part.dtype} of shape {part.shape}, for {lines} lines of {length}")
    return Lines((sides[0], sides[1]), packing, length)


def _codes(stored: Part, packing: Packing, lines: NDArray[np.intp]) -> NDArray[np.uint32]:
    """The codes of some lines."""
    words = np.ascontiguousarray(stored()[lines % stored.shape[0]]).view(f"<u{packing.bytes_}").astype(np.uint32)
    places = packing.bits * (packing.lines - 1 - lines // stored.shape[0])
    codes: NDArray[np.uint32] = words >> places[:, np.newaxis].astype(np.uint32) & np.uint32((1 << packing.bits) - 1)
    return codes
