"""The softmax of attention: from the scores of a block of queries over a range of the cache to weights.

`query_blocks.py` multiplies queries and keys before, and weights and values behind. Scores are in units of log2(e), so
that weights are powers of two. Every query's sum is taken in 16 lanes, position after position, then folded, whatever
other queries share a block.
"""

from __future__ import annotations

import numpy as np

from quantkit_kernels.attention.integers import LARGEST_WEIGHT, TINY, WEIGHTS
from quantkit_kernels.attention.operands import LOG2_E, NEVER, SCORES_STRIDE, SEGMENT, first_seen
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp2_negative, tanh
from quantkit_kernels.simd import (
    blend_first,
    fma,
    get_f32,
    lane_numbers,
    larger,
    load_line_f32,
    max_rows,
    maximum,
    splat_wide,
    store,
    store_i16,
    sum_rows,
    to_i32,
    where_less,
    zeros_wide,
)

SCALED, LARGEST = 64 * 16, 2 * 64 * 16
"""Bytes from the vectors of sums to those of sums and maxima of scaled weights, in `Queries.lanes`."""


@jit
def weigh(heads, span, queries, cache, table, partial):
    """Turn the rows of the table from scores into weights; writes each query's maximum, sum, and unit of its weights.

    Weights that meet whole numbers become int16, in the first half of their row. Lanes of all queries are folded
    together, which takes less time than folding those of each.
    """
    peaks, lanes, per_kv = partial.peaks + 4 * queries.first, queries.lanes, heads.heads_per_kv
    position, head = span.position + queries.first // per_kv, queries.first % per_kv
    for query in range(queries.count):
        first, row = first_seen(position, heads), table + SCORES_STRIDE * query
        factor = get_f32(queries.factors + 4 * query)
        if heads.softcap != 0.0:
            largest = _cap_and_mask(row, cache, first, position, factor, heads.softcap * LOG2_E)
        elif heads.slopes:
            slope = get_f32(heads.slopes + 4 * head)
            largest = _slope_and_mask(row, cache, first, position, factor, slope * LOG2_E)
        else:
            largest = _mask(row, cache, first, position, factor, 0.0)
        store(lanes + 64 * query, largest)
        head += 1
        if head == per_kv:
            position, head = position + 1, 0
    store(peaks, max_rows(lanes))
    for query in range(queries.count):
        row, peak = table + SCORES_STRIDE * query, get_f32(peaks + 4 * query)
        if cache.scales:
            _weigh_scaled(row, peak, cache, lanes + 64 * query)
        else:
            _weigh(row, peak, cache, lanes + 64 * query)
    store(partial.sums + 4 * queries.first, sum_rows(lanes))
    if not cache.scales:
        store(queries.units, splat_wide(1.0))
        return
    needed = sum_rows(lanes + SCALED) * splat_wide(LARGEST_WEIGHT / WEIGHTS)
    units = maximum(maximum(max_rows(lanes + LARGEST), needed), splat_wide(TINY)) / splat_wide(LARGEST_WEIGHT)
    store(queries.units, units)
    store(lanes, splat_wide(1.0) / units)
    for query in range(queries.count):
        _round(table + SCORES_STRIDE * query, get_f32(lanes + 4 * query), cache)


def _masker(bend):
    @jit
    def mask(row, cache, first, last, factor, amount):
        """Scale a query's scores, bend them, set those that it does not see to `NEVER`; returns each lane's maximum."""
        factors, largest = splat_wide(factor), splat_wide(NEVER)
        for position in range(cache.low & ~15, cache.high + 1, 16):
            place = row + 4 * (position - cache.base)
            score = load_line_f32(place) * factors
            if cache.scales:
                score = score * load_line_f32(cache.scales + 4 * (position - cache.base))
            score = bend(score, amount, position - last)
            if position + 15 > last or position < first:
                score = blend_first(last + 1 - position, score, splat_wide(NEVER))
                score = blend_first(first - position, splat_wide(NEVER), score)
            store(place, score)
            largest = larger(largest, score)
        return largest

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
def _weigh(row, peak, cache, lanes):
    """Turn a query's scores into weights `2**(score - peak)`; stores their sum in each lane."""
    total, peaks = zeros_wide(1, 1), splat_wide(peak)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = row + 4 * (position - cache.base)
        weight = exp2_negative(load_line_f32(place) - peaks)
        total = total + weight
        store(place, weight)
    store(lanes, total)


@jit
def _weigh_scaled(row, peak, cache, lanes):
    """The same; weights are then multiplied by the values' scales. Stores their sum and maximum in each lane, too."""
    total, scaled_total, largest = zeros_wide(1, 1), zeros_wide(1, 1), zeros_wide(1, 1)
    peaks, zero = splat_wide(peak), zeros_wide(1, 1)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = row + 4 * (position - cache.base)
        weight = exp2_negative(load_line_f32(place) - peaks)
        total = total + weight
        scale = load_line_f32(cache.scales + 4 * SEGMENT + 4 * (position - cache.base))
        # Scales of positions that the query does not see may be NaN.
        scaled = where_less(zero, weight, weight * scale, zero)
        scaled_total, largest = scaled_total + scaled, larger(largest, scaled)
        store(place, scaled)
    store(lanes, total)
    store(lanes + SCALED, scaled_total)
    store(lanes + LARGEST, largest)


@jit
def _round(row, factor, cache):
    """Round a query's weights times a factor to int16."""
    factors, half = splat_wide(factor), splat_wide(0.5)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = position - cache.base
        store_i16(row + 2 * place, to_i32(fma(load_line_f32(row + 4 * place), factors, half)))
