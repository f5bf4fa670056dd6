"""Attention of a span's queries over one segment of the KV cache: a partial result, which `merge.py` adds to others.

Queries (tokens times heads) are multiplied a block at a time, straight from the pages. A span of more than one token
widens int8 to int16 first, in the thread's own memory.

`query_blocks.py` computes a block; `sharing.py` decides which thread computes which segment.
"""

from __future__ import annotations

import numpy as np

from quantkit_kernels.attention import query_blocks
from quantkit_kernels.attention.integers import codes, length_scale
from quantkit_kernels.attention.operands import (
    LOG2_E,
    NEVER,
    QUERY_BLOCK,
    SEGMENT,
    SMALL_QUERY_BLOCK,
    CacheRange,
    Heads,
    Queries,
    first_seen,
)
from quantkit_kernels.attention.pages import (
    F32,
    INT8,
    PAGE,
    head_bytes,
    key_bytes,
    numbers_bytes,
    padded,
    rotate,
    widen,
    widened_bytes,
)
from quantkit_kernels.attention.query_blocks import query_block
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    TILES,
    get_i64,
    load_wide_partial_f32,
    put_f32,
    put_i64,
    store,
    store_i16,
)


@jit
def prepare(heads, span, kv_head, q, scratch):
    """Write rows of a span's queries for one KV head, one behind the other, as the cache's numbers are.

    f32 stays; for whole numbers, queries are rounded to int16, of int8 after a rotation.
    """
    head_dim, kind = heads.layer.head_dim, heads.layer.kind
    channels, row = padded(head_dim), 4 * head_dim
    size = 4 if kind == F32 else 2
    source = q.address + q.stride * span.first + row * heads.heads_per_kv * kv_head
    for query in range(span.tokens * heads.heads_per_kv):
        place = source + q.stride * (query // heads.heads_per_kv) + row * (query % heads.heads_per_kv)
        target, count, scale = scratch.queries + size * channels * query, head_dim, np.float32(1.0)
        if kind == INT8:
            rotate(place, head_dim, scratch.widened)
            place, count = scratch.widened, channels
        if kind != F32:
            scale = length_scale(place, count)
        put_f32(scratch.query_factors + 4 * query, scale * heads.scale * LOG2_E)
        for channel in range(0, channels, 16):
            line = load_wide_partial_f32(place + 4 * channel, count - channel)
            if kind == F32:
                store(target + 4 * channel, line)
            else:
                store_i16(target + 2 * channel, codes(line, scale))


@jit
def attend_segment(heads, span, kv_head, segment, scratch, partial):
    """The partial of a span and a KV head, whose queries `prepare` wrote, for one segment."""
    kind, per_kv = heads.layer.kind, heads.heads_per_kv
    if heads.slopes:  # those of the KV head's own queries
        slopes = heads.slopes + 4 * per_kv * kv_head
        heads = Heads(heads.layer, per_kv, heads.scale, heads.softcap, heads.sinks, slopes, heads.window, heads.chunked)
    if kind == F32:
        _f32(heads, span, _cache_range(heads, span, kv_head, segment, 4), scratch, partial)
    elif kind == INT8 and span.tokens == 1:
        _int8(heads, span, _cache_range(heads, span, kv_head, segment, 1), scratch, partial)
    else:
        cache = _cache_range(heads, span, kv_head, segment, 2)
        if kind == INT8:
            cache = _widened(heads, cache, scratch)
        _int16(heads, span, cache, scratch, partial)


@jit
def _cache_range(heads, span, kv_head, segment, size):
    """The positions of a segment that a span sees, for a KV head whose numbers are of `size` bytes, or will be."""
    layer, base = heads.layer, segment * SEGMENT
    keys = layer.offset + kv_head * head_bytes(layer)
    scales = 0 if layer.kind == F32 else keys + numbers_bytes(layer, size)
    low = max(first_seen(span.position, heads), base)
    high = min(span.position + span.tokens, base + SEGMENT) - 1
    values, newest = keys + key_bytes(layer, size), span.position // PAGE
    return CacheRange(span.pages, keys, values, scales, base, low, high, newest)


def _all_queries(block, most, small_block):
    """Make the kernel for all queries of a span, up to `most` at once; and few at once where few are left."""

    @jit
    def all_queries(heads, span, cache, scratch, partial):
        begin, end = 0, span.tokens * heads.heads_per_kv
        row = padded(heads.layer.head_dim) * (4 if heads.layer.kind == F32 else 2)
        while begin < end:
            # A large block may be filled in part only: it is faster than several small ones.
            large = end - begin > 2 * most // 3
            count = min(end - begin, most if large else SMALL_QUERY_BLOCK)
            rows, factors = scratch.queries + row * begin, scratch.query_factors + 4 * begin
            queries = Queries(rows, factors, scratch.units, begin, count)
            seen = _seen(heads, span, queries, cache)
            if seen.low > seen.high:
                for query in range(begin, begin + count):
                    put_f32(partial.peaks + 4 * query, NEVER)
            elif large:
                block(heads, span, queries, seen, scratch.scores, partial)
            else:
                small_block(heads, span, queries, seen, scratch.scores, partial)
            begin += count

    return all_queries


_block = query_block(query_blocks.INT16, TILES, QUERY_BLOCK, False)
_small_int16, _small_int8, _small_f32 = (
    query_block(numbers, TILES * TILES, SMALL_QUERY_BLOCK, True)
    for numbers in (query_blocks.INT16, query_blocks.INT8, query_blocks.F32)
)
_int16 = _all_queries(_block, QUERY_BLOCK, _small_int16)
_int8 = _all_queries(_small_int8, SMALL_QUERY_BLOCK, _small_int8)
_f32 = _all_queries(_small_f32, SMALL_QUERY_BLOCK, _small_f32)


@jit
def _seen(heads, span, queries, cache):
    """The positions of a range that any of some queries sees."""
    earliest = span.position + queries.first // heads.heads_per_kv
    latest = span.position + (queries.first + queries.count - 1) // heads.heads_per_kv
    low = max(first_seen(earliest, heads), cache.base)
    high = min(latest, cache.high)
    return CacheRange(cache.pages, cache.keys, cache.values, cache.scales, cache.base, low, high, cache.newest)


@jit
def _widened(heads, cache, scratch):
    """Widen the head of a range to int16: the range, in a table of pages in which the head stands where it did."""
    size, first = widened_bytes(heads.layer), cache.base // PAGE
    table = scratch.widened + SEGMENT // PAGE * size - 8 * first
    for page in range(cache.low // PAGE, cache.high // PAGE + 1):
        out = scratch.widened + size * (page - first)
        widen(heads.layer, get_i64(cache.pages + 8 * page) + cache.keys, out)
        put_i64(table + 8 * page, out - cache.keys)
    return CacheRange(table, cache.keys, cache.values, cache.scales, cache.base, cache.low, cache.high, cache.newest)
