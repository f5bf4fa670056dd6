"""The softmax of attention: from the scores of a block of queries over a range of the cache to weights.

`query_blocks.py` multiplies queries and keys before, and weights and values behind. Scores are in units of log2(e), so
that weights are powers of two. Every query's sum is taken in 16 lanes, position after position, then folded, whatever
other queries share a block.
"""

from __future__ import annotations

import numpy as np

from quantkit_kernels.attention.integers import LARGEST_WEIGHT, TINY, WEIGHTS
from quantkit_kernels.attention.operands import LOG2_E, NEVER, SCORES_STRIDE, first_seen
from quantkit_kernels.attention.pages import PAGE
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp2_negative, tanh
from quantkit_kernels.simd import (
    blend_first,
    fma,
    get_f32,
    get_i64,
    lane_numbers,
    load_line_f32,
    max_lanes,
    maximum,
    put_f32,
    splat_wide,
    store,
    store_i16,
    sum_lanes,
    to_i32,
    where_less,
    zeros_wide,
)


@jit
def weigh(heads, span, queries, cache, table, partial):
    """Turn the rows of the table from scores into weights; writes each query's maximum, sum, and unit of its weights.

    Weights that meet whole numbers become int16, in the first half of their row.
    """
    peaks, sums = partial.peaks + 4 * queries.first, partial.sums + 4 * queries.first
    # Two loops: in one, each query would wait for its maximum before its exponentials.
    for query in range(queries.count):
        position = span.position + (queries.first + query) // heads.heads_per_kv
        first, row = first_seen(position, heads), table + SCORES_STRIDE * query
        factor = get_f32(queries.factors + 4 * query)
        if heads.softcap != 0.0:
            peak = _cap_and_mask(row, cache, first, position, factor, heads.softcap * LOG2_E)
        elif heads.slopes:
            slope = get_f32(heads.slopes + 4 * ((queries.first + query) % heads.heads_per_kv))
            peak = _slope_and_mask(row, cache, first, position, factor, slope * LOG2_E)
        else:
            peak = _mask(row, cache, first, position, factor, 0.0)
        put_f32(peaks + 4 * query, peak)
    for query in range(queries.count):
        row, unit = table + SCORES_STRIDE * query, queries.units + 4 * query
        peak = get_f32(peaks + 4 * query)
        put_f32(sums + 4 * query, _rounded(row, peak, cache, unit) if cache.scales else _exact(row, peak, cache, unit))


def _masker(bend):
    @jit
    def mask(row, cache, first, last, factor, amount):
        """Scale a query's scores, bend them, and set those that it does not see to `NEVER`; returns the maximum."""
        factors, largest = splat_wide(factor), splat_wide(NEVER)
        for position in range(cache.low & ~15, cache.high + 1, 16):
            place = row + 4 * (position - cache.base)
            score = load_line_f32(place) * factors
            if cache.scales:
                score = score * load_line_f32(_scales_at(cache, position))
            score = bend(score, amount, position - last)
            if position + 15 > last or position < first:
                score = blend_first(last + 1 - position, score, splat_wide(NEVER))
                score = blend_first(first - position, splat_wide(NEVER), score)
            store(place, score)
            largest = maximum(largest, score)
        return max_lanes(largest)

    return mask


@jit
def _as_it_is(score, amount, distance):
    return score


@jit
def _capped(score, softcap, distance):
    """`softcap * tanh(score / softcap)`."""
    return tanh(score / splat_wide(softcap)) * splat_wide(softcap)


@jit
def _sloped(score, slope, distance):
    """`score + slope * distance`; the distance of the first lane is given, that of the others grows by 1."""
    return score + splat_wide(slope) * (lane_numbers(score) + splat_wide(np.float32(distance)))


# A kernel each, so that the loop of the many models whose scores stay as they are has no branch more.
_mask, _cap_and_mask, _slope_and_mask = _masker(_as_it_is), _masker(_capped), _masker(_sloped)


@jit
def _exact(row, peak, cache, unit):
    """Turn a query's scores into weights `2**(score - peak)`; returns their sum."""
    total, peaks = zeros_wide(1, 1), splat_wide(peak)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = row + 4 * (position - cache.base)
        weight = exp2_negative(load_line_f32(place) - peaks)
        total = total + weight
        store(place, weight)
    put_f32(unit, 1.0)
    return sum_lanes(total)


@jit
def _rounded(row, peak, cache, unit):
    """The same; weights are then multiplied by the values' scales and rounded to multiples of a unit."""
    total, scaled_total, largest = zeros_wide(1, 1), zeros_wide(1, 1), zeros_wide(1, 1)
    peaks, zero = splat_wide(peak), zeros_wide(1, 1)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = row + 4 * (position - cache.base)
        weight = exp2_negative(load_line_f32(place) - peaks)
        total = total + weight
        # The scale of a position that nobody has written may be NaN.
        scaled = where_less(zero, weight, weight * load_line_f32(_scales_at(cache, position) + 4 * PAGE), zero)
        scaled_total, largest = scaled_total + scaled, maximum(largest, scaled)
        store(place, scaled)
    most = max(max_lanes(largest), sum_lanes(scaled_total) * (LARGEST_WEIGHT / WEIGHTS), TINY)
    factors, half = splat_wide(LARGEST_WEIGHT / most), splat_wide(0.5)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = row + 4 * (position - cache.base)
        store_i16(row + 2 * (position - cache.base), to_i32(fma(load_line_f32(place), factors, half)))
    put_f32(unit, most / LARGEST_WEIGHT)
    return sum_lanes(total)


@jit
def _scales_at(cache, position):
    return get_i64(cache.pages + 8 * (position >> 6)) + cache.scales + 4 * (position & (PAGE - 1))
