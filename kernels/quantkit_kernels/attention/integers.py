"""The whole numbers that attention multiplies: how each kind is rounded, and why no sum overflows.

Products of int16 are summed in int32, two to a lane: twice as many at once as of f32, and exactly, so no order of
summation can change a result. Sums must stay below 2**31:

- Scores. Queries and keys are scaled to a length (the root of the sum of squares) of `LENGTH`. By Cauchy and Schwarz, a
  sum of products is at most the product of the lengths, 2**30, in a head of any size, and so is every part of it.
- Values. Those of a position are scaled to magnitudes of at most `LARGEST_VALUE`, and the weights of a segment so that
  they sum to `WEIGHTS` at most: the product of both is below 2**31.

Rounding errors are as large as those of f16: for 64 channels, 1e-5 of the product of lengths in a score.

`pages.py` rounds keys and values, `segments.py` queries, `weights.py` weights; `query_blocks.py` multiplies.
"""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    absolute,
    fma,
    load_wide_partial_f32,
    max_lanes,
    maximum,
    round_even,
    splat_wide,
    sum_lanes,
    to_i32,
    zeros_wide,
)

LENGTH = 32767.0
LARGEST_VALUE = 16383.0
LARGEST_WEIGHT = 32766.0
"""One less than int16 has, because the largest weight of a segment may be rounded up."""
WEIGHTS = 130_000.0
"""Times `LARGEST_VALUE`, and with `SEGMENT` weights rounded up by 1/2: 2**31 less 0.8 %."""
TINY = 1e-30
"""Scaled to less than this, weights are 0."""


@jit
def length_scale(x, count):
    """Scale of the codes of `count` f32 numbers at `x` whose length is to be `LENGTH`."""
    squares = zeros_wide(1, 1)
    for place in range(0, count, 16):
        line = load_wide_partial_f32(x + 4 * place, count - place)
        squares = fma(line, line, squares)
    return np.float32(math.sqrt(sum_lanes(squares)) / LENGTH)


@jit
def value_scale(x, count):
    """Scale of the codes of `count` f32 numbers at `x` of which the largest is to be `LARGEST_VALUE`."""
    peak = zeros_wide(1, 1)
    for place in range(0, count, 16):
        peak = maximum(peak, absolute(load_wide_partial_f32(x + 4 * place, count - place)))
    return np.float32(max_lanes(peak) / LARGEST_VALUE)


@jit
def codes(x, scale):
    """The numbers of a register divided by their scale, as i32."""
    return to_i32(round_even(x * splat_wide(1.0 / scale if scale > 0.0 else 0.0)))
