"""Activations quantized before a product of packed weights: f32 rows -> int8 in groups of 32 columns.

A token is a row of records, one of 44 bytes for each group, in the order in which `packed.py` reads them:

    32 bytes   codes q, -127..127
    f32        step d = absmax / 127 of the group: x is about d * q
    f32        d * sum(q), which multiplies the mins of `int4`, `int5` and `int6`
    i32        -128 * sum(q): instruction sets that multiply unsigned codes add 128 to those of `int8`, and their dot
               products begin here

Columns past the last are zero.

If nothing else is rounded, SmolLM2-135M diverges by 0.0024 (8 windows of 512 tokens of WikiText-2); with groups of 64,
128 or 256 columns by 0.0045, 0.0078 or 0.0130. Columns sorted by their mean square, so that groups are alike, lose as
much as unsorted.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    absolute,
    load_line_f32,
    load_wide_partial_f32,
    max_lanes,
    maximum,
    put_f32,
    put_i32,
    round_even,
    splat_wide,
    store_i8,
    sum_lanes_i32,
    to_i32,
)

GROUP = 32
"""Columns that share a scale, as in a block of weights."""
RECORD = 44
"""Bytes of one group."""
STEP, SUM, START = 32, 36, 40
"""Byte offsets of d, d * sum(q) and -128 * sum(q) in a record."""


def packed_bytes(columns: int) -> int:
    """Bytes of one quantized token of `columns` columns."""
    return (columns + GROUP - 1) // GROUP * RECORD


@jit
def quantize(x, columns, packed):
    """Quantize the f32 row at `x` to the records at `packed`."""
    for _ in range(columns >> 5):
        _group(load_line_f32(x), load_line_f32(x + 64), packed)
        x += 128
        packed += RECORD
    left = columns & 31
    if left:
        _group(load_wide_partial_f32(x, left), load_wide_partial_f32(x + 64, left - 16), packed)


@jit
def _group(a, b, record):
    """Quantize one group, whose 32 numbers are in two registers."""
    peak = max_lanes(maximum(absolute(a), absolute(b)))
    inverse = splat_wide(127.0 / peak if peak > 0.0 else 0.0)
    a, b = to_i32(round_even(a * inverse)), to_i32(round_even(b * inverse))
    store_i8(record, a)
    store_i8(record + 16, b)
    step, total = peak / 127.0, sum_lanes_i32(a + b)
    put_f32(record + STEP, step)
    put_f32(record + SUM, step * total)
    put_i32(record + START, -128 * total)
