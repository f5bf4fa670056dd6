"""Attention of a block of queries over a range of the cache: scores, weights and weighted values.

A kernel is made for each number of queries at once and each kind of cache by `query_block`. It works in three steps:
products of queries and keys; the softmax's weights (`weights.py`); products of weights and values. With each register
of keys or values, as many bytes are prefetched of those that come next: few queries are bound by memory.

Sums of products of whole numbers are exact (`integers.py`). Those of f32 have one order of accumulation for every
query, whatever other queries share a register tile, and however wide registers are: channel after channel, position
after position.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from quantkit_kernels.attention.operands import SCORES_STRIDE
from quantkit_kernels.attention.pages import PAGE, padded
from quantkit_kernels.attention.weights import weigh
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    broadcast_f32,
    dot_i16_outer,
    fma_outer,
    get_i64,
    load_wide_f32,
    load_wide_i8_as_i16,
    load_wide_i16,
    prefetch_level2,
    store_grid,
    to_f32,
    zeros_wide,
    zeros_wide_i32,
)


@jit
def _same(x):
    return x


@jit
def page_and_ahead(cache, position):
    """Address of the head in the page of a position, and how far behind it stands what to prefetch while it is read."""
    pages, shift, newest, keys = cache.upcoming
    page = position // PAGE
    head = get_i64(cache.pages + 8 * page) + cache.keys
    return head, get_i64(pages + 8 * min(page + shift, newest)) + keys - head


@jit
def _prefetch(address, size):
    for line in range(address, address + size, 64):
        prefetch_level2(line)


class Numbers(NamedTuple):
    """How the numbers of a cache are multiplied."""

    load: Any
    """Loads 16 lanes of them."""
    lane: int
    """Bytes of the numbers that meet in a lane."""
    pairs: int
    """Numbers that meet in a lane: channels of keys, positions of values."""
    zeros: Any = zeros_wide_i32
    multiply: Any = dot_i16_outer
    to_f32: Any = to_f32


INT16, INT8 = Numbers(load_wide_i16, 4, 2), Numbers(load_wide_i8_as_i16, 2, 2)
F32 = Numbers(load_wide_f32, 4, 1, zeros_wide, fma_outer, _same)


def query_block(numbers, rows, n):
    """Make the kernel for `n` queries at once and one kind of cache.

    Parameters
    ----------
    numbers : Numbers
        What the cache holds.
    rows : int
        Registers of 16 positions, or channels, that meet these queries at once.
    n : int
        Queries at once.
    """
    narrow = min(rows, 2)  # a head has 32 channels at least
    multiply_keys = _multiply_keys(_scores(numbers, rows, n), _scores(numbers, narrow, n), numbers, rows, narrow)
    multiply_values, multiply_narrow_values = (
        _multiply_values(_values(numbers, wide, n), 16 * wide) for wide in (rows, narrow)
    )

    @jit
    def attend_block(heads, span, queries, cache, table, partial):
        """Up to `n` queries over a range of the cache; writes their places in the partial."""
        multiply_keys(heads, queries, cache, table)
        weigh(heads, span, queries, cache, table, partial)
        if rows > narrow and padded(heads.layer.v_head_dim) < 16 * rows:
            multiply_narrow_values(heads, queries, cache, table, partial)
        else:
            multiply_values(heads, queries, cache, table, partial)

    return attend_block


def _multiply_keys(scores, narrow_scores, numbers, rows, narrow):
    lane, step, narrow_step = numbers.lane, 16 * rows, 16 * narrow

    @jit
    def multiply_keys(heads, queries, cache, table):
        """Scores of all positions of the range, into the rows of the table."""
        channels = padded(heads.layer.head_dim)
        position = cache.low & -narrow_step
        while position <= cache.high:
            head, ahead = page_and_ahead(cache, position)
            keys, out = head + (position & (PAGE - 1)) * lane, table + 4 * (position - cache.base)
            if rows > narrow and (position & (step - 1) or position + narrow_step > cache.high):
                narrow_scores(queries.rows, channels, keys, ahead, out)
                position += narrow_step
            else:
                scores(queries.rows, channels, keys, ahead, out)
                position += step

    return multiply_keys


def _scores(numbers, rows, n):
    load, lane, pairs, zeros, multiply, to_float = numbers
    tile = 16 * rows * lane

    @jit
    def scores(q, channels, keys, ahead, out):
        """Scores of `16 * rows` positions."""
        acc = zeros(rows, n)
        stride = 4 * channels // pairs
        for _ in range(0, channels, pairs):
            _prefetch(keys + ahead, tile)
            acc = multiply(load(keys, acc), q, stride, acc)
            q += 4
            keys += PAGE * lane
        store_grid(out, 64, SCORES_STRIDE, to_float(acc))

    return scores


def _multiply_values(values, step):
    @jit
    def multiply_values(heads, queries, cache, table, partial):
        """Values of the range, weighted by the rows of the table, into the rows of the partial."""
        channels = padded(heads.layer.v_head_dim)
        out = partial.values + 4 * channels * queries.first
        for channel in range(0, channels, step):
            # Where channels end within a step, some are computed twice.
            values(cache, channels, min(channel, channels - step), table, queries.units, out)

    return multiply_values


def _values(numbers, rows, n):
    load, lane, pairs, zeros, multiply, to_float = numbers
    tile = 16 * rows * lane

    @jit
    def values(cache, channels, channel, table, units, out):
        """Weighted values of `16 * rows` channels."""
        acc = zeros(rows, n)
        row_bytes = channels * lane
        position = cache.low & -pairs
        while position <= cache.high:
            end = min(cache.high, position | (PAGE - 1)) + 1
            row = (position & (PAGE - 1)) // pairs
            head, ahead = page_and_ahead(cache, position)
            v = head + cache.values - cache.keys + row * row_bytes + channel * lane
            weight = table + 4 // pairs * (position - cache.base)
            for _ in range(position, end, pairs):
                _prefetch(v + ahead, tile)
                acc = multiply(load(v, acc), weight, SCORES_STRIDE, acc)
                v += row_bytes
                weight += 4
            position = end
        sums = to_float(acc)
        store_grid(out + 4 * channel, 64, 4 * channels, sums * broadcast_f32(units, 4, sums))

    return values
