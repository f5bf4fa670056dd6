"""What happens to one token's row between the matrix products: norms, rotary embedding, activations, sums, embedding
rows.

A row holds f32 columns, padded to a multiple of 16 that may be read and overwritten and whose content means nothing.
Every function takes one token, and `out` may be the row that it reads. Matrix products are in `matmul.py`, attention in
`attention.py`; `interpreter.py` calls all of them.
"""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import gelu, gelu_tanh, silu
from quantkit_kernels.simd import (
    fma,
    get_f32,
    get_i8,
    get_u8,
    load_bf16,
    load_codes_i8,
    load_codes_u4,
    load_f16,
    load_f32,
    load_line_f32,
    load_partial_f32,
    load_rows_partial_bf16,
    load_rows_partial_f16,
    load_rows_partial_f32,
    put_f32,
    splat,
    splat_wide,
    store,
    sum_lanes,
    zeros,
)

F32, F16, BF16, INT8, INT4 = range(5)
"""`blocks.Kind.code` (a test compares)."""
SILU, GELU, GELU_TANH = range(3)
"""Places in `quantkit.models.recorder.ACTIVATIONS`."""


@jit
def add(a, b, out, n):
    """`out = a + b` over `n` columns."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(a + place) + load_line_f32(b + place))


@jit
def scale(x, factor, out, n):
    """`out = x * factor`."""
    factors = splat_wide(factor)
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(x + place) * factors)


@jit
def copy(x, out, n):
    """`out = x`."""
    for place in range(0, 4 * n, 64):
        store(out + place, load_line_f32(x + place))


@jit
def gated(gate, up, out, n, activation):
    """`out = activation(gate) * up`."""
    for place in range(0, 4 * n, 64):
        x = load_line_f32(gate + place)
        if activation == SILU:
            y = silu(x)
        elif activation == GELU:
            y = gelu(x)
        else:
            y = gelu_tanh(x)
        store(out + place, y * load_line_f32(up + place))


@jit
def rms_norm(x, weight, out, n, size, eps, offset):
    """`out = x / sqrt(mean(x**2) + eps) * (weight + offset)` over every run of `size` columns."""
    whole = size & ~7
    for start in range(0, n, size):
        row, result = x + 4 * start, out + 4 * start
        inverse = np.float32(1.0 / math.sqrt(_sum_of_squares(row, size) / size + eps))
        factors, offsets = splat(inverse), splat(offset)
        for place in range(0, 4 * whole, 32):
            store(result + place, load_f32(row + place) * factors * (load_f32(weight + place) + offsets))
        for place in range(4 * whole, 4 * size, 4):
            put_f32(result + place, get_f32(row + place) * inverse * (get_f32(weight + place) + offset))


@jit
def _sum_of_squares(x, size):
    """Four registers of sums, added pairwise; columns past the last 32 join the first."""
    a, b, c, d = zeros(1, 1), zeros(1, 1), zeros(1, 1), zeros(1, 1)
    end = x + 4 * size
    while x + 128 <= end:
        u, v, w, z = load_f32(x), load_f32(x + 32), load_f32(x + 64), load_f32(x + 96)
        a, b, c, d = fma(u, u, a), fma(v, v, b), fma(w, w, c), fma(z, z, d)
        x += 128
    while x + 32 <= end:
        u = load_f32(x)
        a = fma(u, u, a)
        x += 32
    if x < end:
        u = load_partial_f32(x, (end - x) >> 2)
        a = fma(u, u, a)
    return sum_lanes((a + b) + (c + d))


@jit
def rotation(position, frequencies, half, factor, out):
    """Cosines, then sines, of `position * frequencies`, times `factor`.

    The angle is an f32 product, as transformers computes it; its cosine and sine are taken in f64.
    """
    for i in range(half):
        angle = np.float64(np.float32(position) * get_f32(frequencies + 4 * i))
        put_f32(out + 4 * i, math.cos(angle) * factor)
        put_f32(out + 4 * (half + i), math.sin(angle) * factor)


@jit
def rope(x, turns, out, n, head_dim):
    """Rotate column `i` of every head with column `i + head_dim / 2`, by the cosines and sines at `turns`."""
    half = 2 * head_dim
    whole = half & ~31
    for start in range(0, 4 * n, 4 * head_dim):
        low, high = x + start, x + start + half
        for place in range(0, whole, 32):
            a, b = load_f32(low + place), load_f32(high + place)
            cosine, sine = load_f32(turns + place), load_f32(turns + half + place)
            store(out + start + place, a * cosine - b * sine)
            store(out + start + half + place, b * cosine + a * sine)
        for place in range(whole, half, 4):
            x1, x2 = get_f32(low + place), get_f32(high + place)
            c, s = get_f32(turns + place), get_f32(turns + half + place)
            put_f32(out + start + place, x1 * c - x2 * s)
            put_f32(out + start + half + place, x2 * c + x1 * s)


@jit
def embed(kind, weight, row_scales, row, columns, out):
    """Row `row` of an embedding table of `columns` columns, of any kind, as f32."""
    if kind == INT4:
        _embed_int4(weight, row_scales, row, columns, out)
    elif kind == INT8:
        _embed_int8(weight, row_scales, row, columns, out)
    elif kind == F16:
        _embed_f16(weight + 2 * row * columns, columns, out)
    elif kind == BF16:
        _embed_bf16(weight + 2 * row * columns, columns, out)
    else:
        _embed_f32(weight + 4 * row * columns, columns, out)


@jit
def _embed_int4(weight, row_scales, row, columns, out):
    lane = row & 7
    groups = (columns + 31) >> 5
    block = weight + (row >> 3) * groups * 144
    row_scale = get_f32(row_scales + 64 * (row >> 3) + 4 * lane)
    row_min = get_f32(row_scales + 64 * (row >> 3) + 32 + 4 * lane)
    for column in range(0, columns, 8):
        chunk = (column >> 3) & 3
        scales = splat(row_scale * get_u8(block + 128 + lane))
        offsets = splat(row_min * get_i8(block + 136 + lane))
        store(out + 4 * column, load_codes_u4(block + 32 * chunk + 4 * lane) * scales + offsets)
        block += 144 if chunk == 3 else 0


@jit
def _embed_int8(weight, row_scales, row, columns, out):
    lane = row & 7
    groups = (columns + 31) >> 5
    block = weight + (row >> 3) * groups * 264
    row_scale = get_f32(row_scales + 32 * (row >> 3) + 4 * lane)
    for column in range(0, columns, 8):
        chunk = (column >> 2) & 7
        scales = splat(row_scale * get_u8(block + 256 + lane))
        store(out + 4 * column, load_codes_i8(block + 32 * chunk + 4 * lane, 32) * scales)
        block += 264 if chunk == 6 else 0


def _float_row(load, load_partial, size):
    @jit
    def copy_row(row, columns, out):
        for column in range(0, columns, 8):
            left = columns - column
            place = row + size * column
            store(out + 4 * column, load(place) if left >= 8 else load_partial(place, 0, left, zeros(1, 1)))

    return copy_row


_embed_f16 = _float_row(load_f16, load_rows_partial_f16, 2)
_embed_bf16 = _float_row(load_bf16, load_rows_partial_bf16, 2)
_embed_f32 = _float_row(load_f32, load_rows_partial_f32, 4)
