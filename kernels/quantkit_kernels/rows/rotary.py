"""Rotary position embedding of one token's heads, in Hugging Face's half-split order (Su et al., arXiv:2104.09864).

The cosines and sines of a position are computed once, by `rotation`, and `rope` applies them to the heads of a layer.
"""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import get_f32, load_f32, put_f32, store


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
