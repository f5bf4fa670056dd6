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
    Upcoming,
    first_seen,
)
from quantkit_kernels.attention.pages import (
    F32,
    INT8,
    INT16,
    PAGE,
    head_bytes,
    key_bytes,
    numbers_bytes,
    padded,
    rotate,
    widen,
)
from quantkit_kernels.attention.query_blocks import page_and_ahead, query_block
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    TILES,
    get_i64,
    load_line_f32,
    load_wide_partial_f32,
    prefetch_level2,
    put_f32,
    put_i64,
    store,
    store_i16,
)


@jit
def prepare(heads, pair, q, scratch):
    """Write rows of a pair's queries, one behind the other, as the cache's numbers are.

    f32 stays; for whole numbers, queries are rounded to int16, of int8 after a rotation.
    """
    head_dim, kind, span = heads.layer.head_dim, heads.layer.kind, pair.span
    channels = padded(head_dim)
    row = channels * (4 if kind == F32 else 2)
    target, factor = scratch.queries, scratch.query_factors
    for token in range(span.first, span.first + span.tokens):
        place = q.address + q.stride * token + 4 * head_dim * heads.heads_per_kv * pair.kv_head
        for _ in range(heads.heads_per_kv):
            source, count, scale = place, head_dim, np.float32(1.0)
            if kind == INT8:
                rotate(place, head_dim, scratch.widened)
                source, count = scratch.widened, channels
            if kind != F32:
                scale = length_scale(source, count)
            put_f32(factor, scale * heads.scale * LOG2_E)
            for channel in range(0, channels, 16):
                line = load_wide_partial_f32(source + 4 * channel, count - channel)
                if kind == F32:
                    store(target + 4 * channel, line)
                else:
                    store_i16(target + 2 * channel, codes(line, scale))
            place, target, factor = place + 4 * head_dim, target + row, factor + 4


@jit
def attend_segment(heads, pair, segment, following, scratch, partial):
    """The partial of a pair, whose queries `prepare` wrote, for one segment.

    With it, memory that comes next is prefetched: the pair's next segment, or the first one of the `following` pair.
    """
    kind, per_kv, span = heads.layer.kind, heads.heads_per_kv, pair.span
    if heads.slopes:  # those of the KV head's own queries
        slopes = heads.slopes + 4 * per_kv * pair.kv_head
        heads = Heads(heads.layer, per_kv, heads.scale, heads.softcap, heads.sinks, slopes, heads.window, heads.chunked)
    cache = _cache_range(heads, pair, segment, _upcoming(heads, pair, segment, following), scratch)
    if kind == F32:
        _f32(heads, span, cache, scratch, partial)
        return
    _gather_scales(heads, cache)
    if kind == INT16:
        _int16(heads, span, cache, scratch, partial)
    elif span.tokens == 1:
        _int8(heads, span, cache, scratch, partial)
    else:
        _int16(heads, span, _widened(heads, cache, scratch), scratch, partial)


@jit
def _cache_range(heads, pair, segment, upcoming, scratch):
    """The positions of a segment that a pair's span sees, of its KV head."""
    layer, span, base = heads.layer, pair.span, segment * SEGMENT
    keys, scales = _keys(layer, pair.kv_head), 0 if layer.kind == F32 else scratch.scales
    low, high = max(first_seen(span.position, heads), base), min(span.position + span.tokens, base + SEGMENT) - 1
    return CacheRange(span.pages, keys, keys + key_bytes(layer, layer.kind), scales, base, low, high, upcoming)


@jit
def _upcoming(heads, pair, segment, following):
    """What to prefetch with a segment of a pair: its next segment, or the first one of the following pair, if any."""
    shift, alone = 1, pair.kv_head == following.kv_head and pair.span.first == following.span.first
    if pair.span.position < (segment + 1) * SEGMENT and not alone:
        pair, shift = following, first_seen(following.span.position, heads) // SEGMENT - segment
    span = pair.span
    return Upcoming(span.pages, shift * (SEGMENT // PAGE), span.position // PAGE, _keys(heads.layer, pair.kv_head))


@jit
def _keys(layer, kv_head):
    """Bytes from the start of a page to the keys of a KV head."""
    return layer.offset + kv_head * head_bytes(layer)


@jit
def _gather_scales(heads, cache):
    """Copy the scales of a range from its pages: those of the segment's keys, then those of its values.

    Those of what comes next are prefetched.
    """
    for position in range(cache.low & -16, cache.high + 1, 16):
        place = numbers_bytes(heads.layer, heads.layer.kind) + 4 * (position % PAGE)
        head, ahead = page_and_ahead(cache, position)
        source = head + place
        prefetch_level2(source + ahead)
        prefetch_level2(source + ahead + 4 * PAGE)
        target = cache.scales + 4 * (position - cache.base)
        store(target, load_line_f32(source))
        store(target + 4 * SEGMENT, load_line_f32(source + 4 * PAGE))


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
            queries = Queries(rows, factors, scratch.units, scratch.lanes, begin, count)
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


_block = query_block(query_blocks.INT16, TILES, QUERY_BLOCK)
_small_int16, _small_int8, _small_f32 = (
    query_block(numbers, TILES * TILES, SMALL_QUERY_BLOCK)
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
    return CacheRange(cache.pages, cache.keys, cache.values, cache.scales, cache.base, low, high, cache.upcoming)


@jit
def _widened(heads, cache, scratch):
    """Widen the head of a range to int16: the range, in a table of pages in which the keys stand where they did."""
    size, first = numbers_bytes(heads.layer, 2), cache.base // PAGE
    table = scratch.widened + SEGMENT // PAGE * size - 8 * first
    for page in range(cache.low // PAGE, cache.high // PAGE + 1):
        out = scratch.widened + size * (page - first)
        widen(heads.layer, get_i64(cache.pages + 8 * page) + cache.keys, out)
        put_i64(table + 8 * page, out - cache.keys)
    values = cache.keys + key_bytes(heads.layer, 2)
    upcoming = Upcoming(table, 0, cache.high // PAGE, cache.keys)  # the range itself: the table has no other pages
    return CacheRange(table, cache.keys, values, cache.scales, cache.base, cache.low, cache.high, upcoming)
