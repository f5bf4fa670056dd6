"""Activations quantized on the fly: f32 rows -> int8 groups of 32, in the order in which `matmul.py` reads them.

Tokens are packed in blocks of 8 while they last, then of 4, then singly. A block of n tokens is one record of
40 n bytes for each group of 32 columns, so that the matrix product walks memory once, in order:

    8 x [n] x 4 bytes   codes q, -127..127: for each run of 4 columns the 4 bytes of every token
    [n] f32             d = absmax / 127 of the group: x is about d * q
    [n] f32             d * sum(q), which multiplies the mins of `int4`

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
    round_even,
    splat,
    store_bytes,
    sum_lanes_i32,
    to_i32,
    zeros,
)

GROUP = 32
"""Columns that share a scale, as in a block of weights."""
RECORD = 40
"""Bytes of one token's group."""


def packed_bytes(columns: int) -> int:
    """Bytes of one quantized token of `columns` columns."""
    return (columns + GROUP - 1) // GROUP * RECORD


@jit
def block_size(token, tokens):
    """Tokens in the block that begins at `token` of `tokens`."""
    left = tokens - token
    return 8 if left >= 8 else 4 if left >= 4 else 1


@jit
def block_start(token, tokens):
    """First token of the block in which `token` lies."""
    eights = tokens & ~7
    if token < eights:
        return token & ~7
    fours = eights + ((tokens - eights) & ~3)
    return eights if token < fours else token


@jit
def quantize(x, columns, token, tokens, packed):
    """Quantize the f32 row at `x`, token number `token` of `tokens`, into its place in `packed`."""
    groups = (columns + 31) >> 5
    start = block_start(token, tokens)
    n = block_size(start, tokens)
    record = packed + start * groups * RECORD
    lane = token - start
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
        put_f32(place + 36 * n, scale * sum_lanes_i32(qa + qb + qc + qd))
        x += 128
        record += RECORD * n


@jit
def _columns(x, left):
    if left >= 8:
        return load_f32(x)
    if left > 0:
        return load_partial_f32(x, left)
    return zeros(1, 1)
