"""Activations quantized on the fly: f32 rows -> int8 groups of 32, in the order in which `matmul.py` reads them.

Tokens are packed in blocks of 8 while they last; up to 7 that are left fill a block of 8, of 4 or of 1, whose other
lanes are zero. A block of n lanes is one record of 44 n bytes for each group of 32 columns, so that the matrix product
walks memory once, in order:

    8 x [n] x 4 bytes   codes q, -127..127: for each run of 4 columns the 4 bytes of every token
    [n] f32             d = absmax / 127 of the group: x is about d * q
    [n] f32             d * sum(q), which multiplies the mins of `int4`
    [n] i32             -128 * sum(q), where dot products begin that take the codes of `int8` plus 128

Columns past the last are zero. A group depends on its own token alone, whatever block that token is in.
"""

from __future__ import annotations

from .jit import jit
from .simd import (
    absolute,
    load_f32,
    load_partial_f32,
    max_lanes,
    maximum,
    put_f32,
    put_i32,
    round_even,
    splat,
    store_bytes,
    sum_lanes_i32,
    to_i32,
    zeros,
)

GROUP = 32
"""Columns that share a scale, as in a block of weights."""
RECORD = 44
"""Bytes of one token's group."""


def packed_bytes(columns: int) -> int:
    """Bytes of one quantized token of `columns` columns; a batch takes as many as its lanes, full or empty."""
    return (columns + GROUP - 1) // GROUP * RECORD


@jit
def lanes_of(token, tokens):
    """Lanes of the block that begins at `token` of `tokens`; 8, 4 or 1, some of them perhaps empty."""
    left = tokens - token
    return 8 if left > 4 else 4 if left > 1 else 1


@jit
def quantize(x, columns, token, tokens, packed):
    """Quantize the f32 row at `x`, token number `token` of `tokens`, into its place in `packed`."""
    groups = (columns + 31) >> 5
    start = token & ~7
    n = lanes_of(start, tokens)
    record = packed + start * groups * RECORD
    lane = token - start
    if token == tokens - 1:
        _clear(record, lane + 1, n, groups)
    for group in range(groups):
        left = min(columns - 32 * group, 32)
        a = _columns(x, left)
        b = _columns(x + 32, left - 8)
        c = _columns(x + 64, left - 16)
        d = _columns(x + 96, left - 24)
        peak = max_lanes(maximum(maximum(absolute(a), absolute(b)), maximum(absolute(c), absolute(d))))
        scale = peak / 127.0
        inverse = splat(127.0 / peak if peak > 0.0 else 0.0)
        qa, qb = to_i32(round_even(a * inverse)), to_i32(round_even(b * inverse))
        qc, qd = to_i32(round_even(c * inverse)), to_i32(round_even(d * inverse))
        place = record + 4 * lane
        store_bytes(place, 4 * n, qa)
        store_bytes(place + 8 * n, 4 * n, qb)
        store_bytes(place + 16 * n, 4 * n, qc)
        store_bytes(place + 24 * n, 4 * n, qd)
        put_f32(place + 32 * n, scale)
        total = sum_lanes_i32(qa + qb + qc + qd)
        put_f32(place + 36 * n, scale * total)
        put_i32(place + 40 * n, -128 * total)
        x += 128
        record += RECORD * n


@jit
def _clear(record, lane, n, groups):
    """Zero the lanes from `lane` on, so that no leftover is computed with."""
    for place in range(record, record + RECORD * n * groups, 4 * n):
        for empty in range(lane, n):
            put_i32(place + 4 * empty, 0)


@jit
def _columns(x, left):
    if left >= 8:
        return load_f32(x)
    if left > 0:
        return load_partial_f32(x, left)
    return zeros(1, 1)
