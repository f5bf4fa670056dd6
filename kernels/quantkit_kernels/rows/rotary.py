"""Rotary position embedding of one token's heads (Su et al., arXiv:2104.09864).

The cosines and sines of a position are computed once, by `rotation`. `rope` applies them to the heads of a layer in
Hugging Face's half-split order, `rope_interleaved` in the paper's; to all columns of each head or to some of them.
"""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.arithmetic import copy_anywhere
from quantkit_kernels.simd import (
    even_lanes,
    get_f32,
    interleave,
    load_f32,
    load_line_f32,
    odd_lanes,
    put_f32,
    store,
)


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
def rope(x, turns, out, n, head_dim, begin, rotary_dim):
    """Rotate column `i` of every head with column `i + rotary_dim / 2`, by the cosines and sines at `turns`.

    The columns of a head that turn begin at `begin`; those before and behind them stay as they are.
    """
    half = 2 * rotary_dim
    whole = half & ~31
    for start in range(4 * begin, 4 * n, 4 * head_dim):
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
    if x != out:
        _copy_rest(x, out, n, head_dim, begin, rotary_dim)


@jit
def rope_interleaved(x, turns, out, n, head_dim, begin, rotary_dim):
    """As `rope`, but rotate column `2 i` of every head with column `2 i + 1`, as the paper does."""
    half = 2 * rotary_dim
    whole = half & ~31
    for start in range(4 * begin, 4 * n, 4 * head_dim):
        pairs, result = x + start, out + start
        for place in range(0, whole, 32):
            both = load_line_f32(pairs + 2 * place)
            a, b = even_lanes(both), odd_lanes(both)
            cosine, sine = load_f32(turns + place), load_f32(turns + half + place)
            store(result + 2 * place, interleave(a * cosine - b * sine, b * cosine + a * sine))
        for place in range(whole, half, 4):
            x1, x2 = get_f32(pairs + 2 * place), get_f32(pairs + 2 * place + 4)
            c, s = get_f32(turns + place), get_f32(turns + half + place)
            put_f32(result + 2 * place, x1 * c - x2 * s)
            put_f32(result + 2 * place + 4, x2 * c + x1 * s)
    if x != out:
        _copy_rest(x, out, n, head_dim, begin, rotary_dim)


@jit
def _copy_rest(x, out, n, head_dim, begin, rotary_dim):
    """Copy the columns of every head that do not turn."""
    for start in range(0, 4 * n, 4 * head_dim):
        end = start + 4 * (begin + rotary_dim)
        copy_anywhere(x + start, out + start, begin)
        copy_anywhere(x + end, out + end, head_dim - begin - rotary_dim)
