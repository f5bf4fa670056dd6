"""Attention of a block of queries over a range of the cache: scores, weights and weighted values.

A kernel is made for each number of queries at once and each kind of cache by `query_block`. It works in three steps:
products of queries and keys; the softmax's weights; products of weights and values.

Every query has one order of accumulation, whatever other queries share a register tile, and however wide registers are:
scores channel after channel; the sum of weights in 16 lanes, position after position, then folded; weighted values
position after position.
"""

from __future__ import annotations

import numpy as np

from quantkit_kernels.attention.operands import NEVER, SCORES_STRIDE, SEGMENT, first_seen
from quantkit_kernels.attention.pages import INT8, KEY_ROW, PAGE, padded
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp_negative, tanh
from quantkit_kernels.simd import (
    TILES,
    blend_first,
    fma_outer,
    get_f32,
    get_i64,
    lane_numbers,
    load_wide_f32,
    max_lanes,
    maximum,
    prefetch,
    put_f32,
    splat_wide,
    store,
    store_grid,
    sum_lanes,
    zeros_wide,
)

STEP = 16 * TILES
"""Positions, or channels, that a register tile holds."""


def query_block(load, size, n, single):
    """Make the kernel for `n` queries at once and one kind of cache.

    Parameters
    ----------
    load : kernel
        Widens 16 numbers of the cache to f32.
    size : int
        Bytes of one of them.
    n : int
        Queries at once.
    single : bool
        The queries are those of a single token, which is bound by memory: the kernel prefetches what it reads next, and
        holds two register tiles where registers are left.
    """
    step = 2 * STEP if single and n <= 2 * TILES else STEP
    multiply_keys = _multiply_keys(_scores(load, size, n, single), _two_scores(load, size, n), size, step)
    multiply_values = _multiply_values(_values(load, size, n, step, single), step)

    @jit
    def attend_block(heads, span, queries, cache, scores, partial):
        """Up to `n` queries over a range of the cache; writes their places in the partial."""
        multiply_keys(heads, queries, cache, scores)
        _weigh_all(heads, span, queries, cache, scores, partial)
        multiply_values(heads, queries, cache, scores, partial)

    return attend_block


@jit
def query_width(heads):
    """Channels of a query: with the padding, if it is rotated."""
    return padded(heads.layer.head_dim) if heads.layer.kind == INT8 else heads.layer.head_dim


# --- keys ----------------------------------------------------------------------------------------------------------


def _multiply_keys(scores, two_scores, size, step):
    @jit
    def multiply_keys(heads, queries, cache, table):
        """Scores of all positions of the range, into the rows of the table."""
        width, channels = query_width(heads), padded(heads.layer.head_dim)
        far = (channels * KEY_ROW if step > KEY_ROW else STEP) * size
        for position in range(cache.low & -step, cache.high + 1, step):
            key = position // KEY_ROW % (PAGE // KEY_ROW) * channels * KEY_ROW + position % KEY_ROW
            keys = get_i64(cache.pages + 8 * (position >> 6)) + cache.keys + key * size
            out = table + 4 * (position - cache.base)
            if step > STEP and position + STEP <= cache.high:
                two_scores(queries.rows, width, keys, far, out)
            else:
                scores(queries.rows, width, keys, out)

    return multiply_keys


def _scores(load, size, n, single):
    @jit
    def scores(q, width, keys, out):
        """Scores of `STEP` positions."""
        acc = zeros_wide(TILES, n)
        ahead = PAGE * padded(width) * size
        for _ in range(width):
            if single:
                prefetch(keys + ahead)
            acc = fma_outer(load(keys, acc), q, 4 * width, acc)
            q += 4
            keys += KEY_ROW * size
        store_grid(out, 64, SCORES_STRIDE, acc)

    return scores


def _two_scores(load, size, n):
    @jit
    def two_scores(q, width, keys, far, out):
        """Scores of twice as many positions, whose second half stands `far` behind the first."""
        a, b = zeros_wide(TILES, n), zeros_wide(TILES, n)
        ahead = PAGE * padded(width) * size
        for _ in range(width):
            prefetch(keys + ahead)
            a = fma_outer(load(keys, a), q, 4 * width, a)
            prefetch(keys + far + ahead)
            b = fma_outer(load(keys + far, b), q, 4 * width, b)
            q += 4
            keys += KEY_ROW * size
        store_grid(out, 64, SCORES_STRIDE, a)
        store_grid(out + 4 * STEP, 64, SCORES_STRIDE, b)

    return two_scores


# --- weights -------------------------------------------------------------------------------------------------------


@jit
def _weigh_all(heads, span, queries, cache, table, partial):
    """Turn the rows of the table from scores into weights; writes each query's maximum and sum."""
    peaks, sums = partial.peaks + 4 * queries.first, partial.sums + 4 * queries.first
    # Two loops: in one, each query would wait for its maximum before its exponentials.
    for query in range(queries.count):
        position = span.position + (queries.first + query) // heads.heads_per_kv
        first, row = first_seen(position, heads), table + SCORES_STRIDE * query
        if heads.softcap != 0.0:
            peak = _cap_and_mask(heads, row, cache, first, position, heads.softcap)
        elif heads.slopes:
            slope = get_f32(heads.slopes + 4 * ((queries.first + query) % heads.heads_per_kv))
            peak = _slope_and_mask(heads, row, cache, first, position, slope)
        else:
            peak = _mask(heads, row, cache, first, position, heads.scale)
        put_f32(peaks + 4 * query, peak)
    for query in range(queries.count):
        put_f32(sums + 4 * query, _weigh(table + SCORES_STRIDE * query, get_f32(peaks + 4 * query), cache))


def _masker(bend):
    @jit
    def mask(heads, row, cache, first, last, amount):
        """Scale a query's scores, bend them, and set those that it does not see to `NEVER`; returns the maximum.

        Scores of int8 keys are multiplied by the keys' scales.
        """
        factor, largest = splat_wide(heads.scale), splat_wide(NEVER)
        for position in range(cache.low & ~15, cache.high + 1, 16):
            place = row + 4 * (position - cache.base)
            score = load_wide_f32(place, factor) * factor
            if cache.scales:
                score = score * load_wide_f32(_scales_at(cache, position), factor)
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
def _weigh(row, peak, cache):
    """Turn a query's scores into weights `exp(score - peak)`; returns their sum.

    Weights of int8 values are then multiplied by the values' scales.
    """
    total, peaks = zeros_wide(1, 1), splat_wide(peak)
    for position in range(cache.low & ~15, cache.high + 1, 16):
        place = row + 4 * (position - cache.base)
        weight = exp_negative(load_wide_f32(place, peaks) - peaks)
        total = total + weight
        if cache.scales:
            weight = weight * load_wide_f32(_scales_at(cache, position) + 4 * PAGE, peaks)
        store(place, weight)
    return sum_lanes(total)


@jit
def _scales_at(cache, position):
    return get_i64(cache.pages + 8 * (position >> 6)) + cache.scales + 4 * (position & (PAGE - 1))


# --- values --------------------------------------------------------------------------------------------------------


def _multiply_values(values, step):
    @jit
    def multiply_values(heads, queries, cache, table, partial):
        """Values of the range, weighted by the rows of the table, into the rows of the partial."""
        channels = padded(heads.layer.v_head_dim)
        out = partial.values + 4 * channels * queries.first
        for channel in range(0, channels, step):
            # Where channels end within a step, some are computed twice.
            near, last = min(channel, channels - STEP), max(channels - STEP, 0)
            values(cache, channels, near, min(channel + STEP, last) - near, table, out)

    return multiply_values


def _values(load, size, n, step, single):
    @jit
    def values(cache, channels, channel, far, table, out):
        """Weighted values of `step` channels, whose second half is `far` behind the first."""
        a, b = zeros_wide(TILES, n), zeros_wide(TILES, n)
        row_bytes = channels * size
        position = cache.low
        while position <= cache.high:
            end = min(cache.high, position | (PAGE - 1))
            first = (position & (PAGE - 1)) * row_bytes + channel * size
            v = get_i64(cache.pages + 8 * (position >> 6)) + cache.values + first
            weight = table + 4 * (position - cache.base)
            if single:
                # The keys of the next segment.
                page = min((position >> 6) + SEGMENT // PAGE, cache.newest)
                ahead = get_i64(cache.pages + 8 * page) + cache.keys + first
            for _ in range(end + 1 - position):
                if single:
                    prefetch(ahead)
                a = fma_outer(load(v, a), weight, SCORES_STRIDE, a)
                if step > STEP:
                    prefetch(ahead + far * size)
                    b = fma_outer(load(v + far * size, b), weight, SCORES_STRIDE, b)
                if single:
                    ahead += row_bytes
                v += row_bytes
                weight += 4
            position = end + 1
        store_grid(out + 4 * channel, 64, 4 * channels, a)
        if step > STEP:
            store_grid(out + 4 * (channel + far), 64, 4 * channels, b)

    return values
