"""Attention over a paged KV cache: grouped heads, causal, with or without a sliding window.

A page holds `PAGE` consecutive positions of one sequence, for all layers and KV heads. Of each, at `page + (layer *
kv_heads + head) * head_bytes`, first the keys, `[PAGE / 8][head_dim][8 positions]`: lanes are positions, so scores need
no horizontal sums; then the values, `[PAGE][head_dim padded to 16]`: lanes are channels. Numbers are f16, or f32 for
the reference path.

The logits of a token must not depend on what else is computed, so every query has one order of accumulation: scores
channel after channel; positions in segments of `SEGMENT`, each with its own maximum, sum and weighted values; segments
merged in order. What other queries share a register tile, a call or a thread changes none of it. `functions.py` has
exp; `interpreter.py` calls `store_kv` and `attend`.
"""

from __future__ import annotations

from .functions import exp
from .jit import jit
from .simd import (
    blend_first,
    broadcast_f32,
    fma,
    get_f32,
    get_i64,
    load_f32,
    load_rows_f16,
    load_rows_f32,
    max_lanes,
    maximum,
    put_f16,
    put_f32,
    splat,
    store,
    store_grid,
    sum_lanes,
    tokens_of,
    zeros,
)

PAGE = 64
"""Positions of a page."""
SEGMENT = 256
"""Positions whose maximum and sum are taken together."""
RUN = 16
"""Query tokens that `attend` takes at most."""
F16 = 1
"""`blocks.Kind.code` of a cache of f16; f32 otherwise."""
NEVER, LEAST = -3.0e38, -2.9e38
"""Score of a position that a query does not see; scores that it sees are above the second."""
SIZES = {"f16": 2, "f32": 4}


@jit
def _padded(head_dim):
    """Channels of a row of values in the cache: whole pairs of registers."""
    return (head_dim + 15) & ~15


def page_bytes(kind: str, layers: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of a page."""
    return layers * kv_heads * PAGE * (head_dim + _padded.py_func(head_dim)) * SIZES[kind]


def scratch_bytes(head_dim: int) -> int:
    """Bytes of memory of its own that a thread needs for `attend`: scores, and running sums of four queries."""
    return 4 * 4 * (SEGMENT + 3 * _padded.py_func(head_dim) + 4 * 8)


@jit
def store_kv(kind, k, v, pages, position, layer, kv_heads, head_dim):
    """Write one token's keys and values, f32 rows of `kv_heads * head_dim`, into its sequence's page."""
    size = 2 if kind == F16 else 4
    head_bytes = _head_bytes(head_dim, size)
    place = get_i64(pages + 8 * (position >> 6)) + layer * kv_heads * head_bytes
    slot = position & 63
    for _ in range(kv_heads):
        key = place + ((slot >> 3) * head_dim * 8 + (slot & 7)) * size
        value = place + (PAGE * head_dim + slot * _padded(head_dim)) * size
        for channel in range(head_dim):
            _put(kind, key + 8 * size * channel, get_f32(k + 4 * channel))
            _put(kind, value + size * channel, get_f32(v + 4 * channel))
        for channel in range(head_dim, _padded(head_dim)):
            _put(kind, value + size * channel, 0.0)
        k, v = k + 4 * head_dim, v + 4 * head_dim
        place += head_bytes


@jit
def _put(kind, place, number):
    if kind == F16:
        put_f16(place, number)
    else:
        put_f32(place, number)


@jit
def attend(
    kind, q, q_stride, out, out_stride, tokens, position, pages, layer, kv_heads, kv_head, group, head_dim, scale,
    window, scratch,
):  # fmt: skip
    """Attention of `tokens` consecutive query tokens of one sequence over one KV head.

    Parameters
    ----------
    kind : int
        `blocks.Kind.code` of the cache.
    q, out : int
        f32 rows of all heads, one for each token; the heads of this group are read and written.
    position : int
        Of the first token.
    pages : int
        Address of the sequence's table of page addresses.
    group : int
        Query heads that share the KV head.
    window : int
        Positions that a query sees, its own included; 0 for all before it.
    scratch : int
        `scratch_bytes(head_dim)` of this thread's own.
    """
    first_head = 4 * head_dim * group * kv_head
    queries = tokens * group
    begin = 0
    while begin < queries:
        count = min(queries - begin, 4)
        if kind == F16:
            head = (layer * kv_heads + kv_head) * _head_bytes(head_dim, 2)
            if count == 1:
                _attend_f16(
                    zeros(2, 1), q + first_head, q_stride, out + first_head, out_stride, begin, count, position, pages,
                    head, group, head_dim, scale, window, scratch,
                )  # fmt: skip
            else:
                _attend_f16(
                    zeros(2, 4), q + first_head, q_stride, out + first_head, out_stride, begin, count, position, pages,
                    head, group, head_dim, scale, window, scratch,
                )  # fmt: skip
        else:
            head = (layer * kv_heads + kv_head) * _head_bytes(head_dim, 4)
            _attend_f32(
                zeros(2, 4), q + first_head, q_stride, out + first_head, out_stride, begin, count, position, pages,
                head, group, head_dim, scale, window, scratch,
            )  # fmt: skip
        begin += count


def _attention(load_rows, size):
    """The kernel for one kind of cache: `load_rows` widens its numbers, which have `size` bytes."""

    @jit
    def scores(like, q, pages, head, head_dim, low, high, base, table):
        """Scores of positions `low` (a multiple of 16) to `high`, and some after it, into rows of `SEGMENT`."""
        q_bytes = 4 * _padded(head_dim)
        position = low
        while position <= high:
            keys = get_i64(pages + 8 * (position >> 6)) + head + (position & 63) * head_dim * size
            acc = like
            for channel in range(head_dim):
                k = load_rows(keys + 8 * size * channel, 8 * size * head_dim, like)
                acc = fma(k, broadcast_f32(q + 4 * channel, q_bytes, like), acc)
            store_grid(table + 4 * (position - base), 32, 4 * SEGMENT, acc)
            position += 16

    @jit
    def values(like, pages, head, head_dim, low, high, base, table, out):
        """Values of positions `low` to `high`, weighted by the rows of `table`, into rows of `out`."""
        padded = _padded(head_dim)
        for channel in range(0, padded, 16):
            acc = like
            for position in range(low, high + 1):
                row = (position & 63) * padded + channel
                v = get_i64(pages + 8 * (position >> 6)) + head + (PAGE * head_dim + row) * size
                weight = broadcast_f32(table + 4 * (position - base), 4 * SEGMENT, like)
                acc = fma(load_rows(v, 8 * size, like), weight, acc)
            store_grid(out + 4 * channel, 32, 4 * padded, acc)

    @jit
    def block(
        like, q, q_stride, out, out_stride, begin, count, position, pages, head, group, head_dim, scale, window, scratch
    ):
        """Queries `begin` to `begin + count` of the run: token after token, its heads together."""
        n, padded = tokens_of(like), _padded(head_dim)
        # Scores, queries, weighted values of a segment, their running sum; then maximum and sum of each query.
        table, block_q = scratch, scratch + 4 * n * SEGMENT
        part, total = block_q + 4 * n * padded, block_q + 8 * n * padded
        part_sums, sums = total + 4 * n * padded, total + 4 * n * padded + 64 * n
        for j in range(n):
            query = begin + min(j, count - 1)
            source = q + (query // group) * q_stride + 4 * head_dim * (query % group)
            for channel in range(head_dim):
                put_f32(block_q + 4 * (padded * j + channel), get_f32(source + 4 * channel) * scale)
            store(sums + 64 * j, splat(NEVER))
            store(sums + 64 * j + 32, zeros(1, 1))
            for channel in range(0, padded, 8):
                store(total + 4 * (padded * j + channel), zeros(1, 1))
        last = position + (begin + count - 1) // group
        first = _first_seen(position + begin // group, window)
        for base in range(first & ~(SEGMENT - 1), last + 1, SEGMENT):
            high = min(last, base + SEGMENT - 1)
            low = max(first, base) & ~15
            scores(like, block_q, pages, head, head_dim, low, high, base, table)
            for j in range(n):
                at = position + (begin + min(j, count - 1)) // group
                _weigh(table + 4 * SEGMENT * j, low, high, base, _first_seen(at, window), at, part_sums + 64 * j)
            values(like, pages, head, head_dim, low, high, base, table, part)
            for j in range(count):
                row = 4 * padded * j
                _merge(part_sums + 64 * j, part + row, sums + 64 * j, total + row, padded)
        for j in range(count):
            query = begin + j
            target = out + (query // group) * out_stride + 4 * head_dim * (query % group)
            row, inverse = total + 4 * padded * j, 1.0 / get_f32(sums + 64 * j + 32)
            for channel in range(head_dim):
                put_f32(target + 4 * channel, get_f32(row + 4 * channel) * inverse)

    return block


_attend_f16 = _attention(load_rows_f16, 2)
_attend_f32 = _attention(load_rows_f32, 4)


@jit
def _weigh(table, low, high, base, first, last, sums):
    """Turn a query's scores into weights `exp(score - maximum)`, 0 for what it does not see; keep maximum and sum."""
    never = splat(NEVER)
    largest = never
    for position in range(low, high + 1, 8):
        place = table + 4 * (position - base)
        seen = blend_first(last + 1 - position, load_f32(place), never)
        seen = blend_first(first - position, never, seen)
        store(place, seen)
        largest = maximum(largest, seen)
    peak = splat(max_lanes(largest))
    total = zeros(1, 1)
    for position in range(low, high + 1, 8):
        place = table + 4 * (position - base)
        weight = exp(load_f32(place) - peak)
        store(place, weight)
        total = total + weight
    store(sums, peak)
    store(sums + 32, splat(sum_lanes(total)))


@jit
def _merge(part_sums, part, sums, total, channels):
    """Add a segment's weighted values to the running ones, both brought to the larger of their maxima."""
    part_peak, peak = load_f32(part_sums), load_f32(sums)
    if get_f32(part_sums) <= LEAST:
        return
    both = maximum(part_peak, peak)
    rescale, part_rescale = exp(peak - both), exp(part_peak - both)
    store(sums, both)
    store(sums + 32, fma(load_f32(sums + 32), rescale, load_f32(part_sums + 32) * part_rescale))
    for channel in range(0, channels, 8):
        place = total + 4 * channel
        store(place, fma(load_f32(place), rescale, load_f32(part + 4 * channel) * part_rescale))


@jit
def _first_seen(position, window):
    """First position that a query at `position` sees."""
    return max(0, position - window + 1) if window else 0


@jit
def _head_bytes(head_dim, size):
    return PAGE * (head_dim + _padded(head_dim)) * size
