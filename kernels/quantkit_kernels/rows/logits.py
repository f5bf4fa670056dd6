"""What evaluation asks of rows of logits: the logarithm of their sum of exponentials, and how far two rows are apart.

Not a part of any program: `quantkit.evaluation.quality` calls it from its threads. Exponentials are f32; what is summed
up is f32 within a block of columns and f64 beyond it, so that errors do not grow with the vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp_negative
from quantkit_kernels.rows.lines import line_at
from quantkit_kernels.simd import (
    fma,
    splat_wide,
    sum_lanes,
    zeros_wide,
)

BLOCK = 512
"""Columns that are summed in f32: 32 additions in each lane."""
NOTHING = -1e30
"""A logit of no probability, in place of columns that are not there."""


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """Return the logarithm of the sum of the exponentials of a row, f32 `[vocab_size]`; NaN where one is not finite."""
    greatest = float(logits[logits.argmax()])
    total: float = _exp_sum(logits.ctypes.data, logits.size, greatest)
    return greatest + math.log(total)


def kl_divergence(p: NDArray[np.float32], q: NDArray[np.float32], log_p: float, log_q: float) -> float:
    """Return the Kullback-Leibler divergence of the softmax of `q` from that of `p`, in nats.

    Parameters
    ----------
    p, q : ndarray
        f32 `[vocab_size]`, contiguous: logits of the reference and of the other.
    log_p, log_q : float
        What `log_sum_exp` returns for each.
    """
    # Differences are taken from their mean, or nearly so: equal rows are 0 apart, close ones keep their digits.
    distance = log_p - log_q
    shift = float(np.float32(distance))
    sizes = p.ctypes.data, q.ctypes.data, p.size
    mean: float = _mean_difference(*sizes, float(p[p.argmax()]), shift)
    return mean - (distance - shift)


@jit(entry=True)
def _exp_sum(x, columns, greatest):
    """The sum of `exp(x - greatest)`."""
    total, end = 0.0, 4 * columns
    for begin in range(0, end, 4 * BLOCK):
        sums = zeros_wide(1, 1)
        for place in range(begin, min(begin + 4 * BLOCK, end), 64):
            sums = sums + exp_negative(line_at(x, place, end, NOTHING) - splat_wide(greatest))
        total += np.float64(sum_lanes(sums))
    return total


@jit(entry=True)
def _mean_difference(p, q, columns, greatest, shift):
    """The mean of `p - q - shift`, weighted with `exp(p - greatest)`."""
    total, weighted, end = 0.0, 0.0, 4 * columns
    for begin in range(0, end, 4 * BLOCK):
        weights, sums = zeros_wide(1, 1), zeros_wide(1, 1)
        for place in range(begin, min(begin + 4 * BLOCK, end), 64):
            x = line_at(p, place, end, NOTHING)
            weight = exp_negative(x - splat_wide(greatest))
            weights = weights + weight
            sums = fma(weight, x - line_at(q, place, end, NOTHING) - splat_wide(shift), sums)
        total += np.float64(sum_lanes(weights))
        weighted += np.float64(sum_lanes(sums))
    return weighted / total
