"""Attention of a span's queries over one segment of the KV cache: a partial result, which `merge.py` adds to others.

A single query token reads each key and value once, straight from the pages, for up to 4 heads at once: as fast as
memory. A longer span widens the segment to f32 first, in the thread's own memory, and multiplies it as a matrix, a
block of queries (tokens times heads) at a time.

`query_blocks.py` computes a block; `sharing.py` decides which thread computes which segment.
"""

from __future__ import annotations

from quantkit_kernels.attention.operands import (
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
    F16,
    F32,
    INT8,
    PAGE,
    head_bytes,
    key_bytes,
    numbers_bytes,
    rotate,
    widen,
    widened_bytes,
)
from quantkit_kernels.attention.query_blocks import query_block, query_width
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    get_i64,
    load_wide_f16,
    load_wide_f32,
    load_wide_i8,
    load_wide_partial_f32,
    put_f32,
    put_i64,
    store,
)


@jit
def prepare(heads, span, kv_head, q, scratch):
    """Rows of a span's queries for one KV head, one behind the other, rotated as the cache is; returns their address.

    The row of a single token is left where it is, if it needs no rotation.
    """
    width, head_dim, kind = query_width(heads), heads.layer.head_dim, heads.layer.kind
    row = 4 * head_dim
    source = q.address + q.stride * span.first + row * heads.heads_per_kv * kv_head
    if span.tokens == 1 and kind == F16:
        return source
    for query in range(span.tokens * heads.heads_per_kv):
        place = source + q.stride * (query // heads.heads_per_kv) + row * (query % heads.heads_per_kv)
        target = scratch.queries + 4 * width * query
        if kind == INT8:
            rotate(place, head_dim, target)
        else:
            for channel in range(0, width, 16):
                store(target + 4 * channel, load_wide_partial_f32(place + 4 * channel, width - channel))
    return scratch.queries


@jit
def attend_segment(heads, span, kv_head, rows, segment, scratch, partial):
    """The partial of a span and a KV head, whose queries `prepare` left at `rows`, for one segment."""
    kind, per_kv = heads.layer.kind, heads.heads_per_kv
    if heads.slopes:  # those of the KV head's own queries
        slopes = heads.slopes + 4 * per_kv * kv_head
        heads = Heads(heads.layer, per_kv, heads.scale, heads.softcap, heads.sinks, slopes, heads.window, heads.chunked)
    if kind == F32:
        _many(heads, span, rows, _cache_range(heads, span, kv_head, segment, 4), scratch, partial)
    elif span.tokens > 1:
        cache = _cache_range(heads, span, kv_head, segment, 4)
        _many(heads, span, rows, _widened(heads, cache, scratch), scratch, partial)
    elif kind == F16:
        _single_f16(heads, span, rows, _cache_range(heads, span, kv_head, segment, 2), scratch, partial)
    else:
        _single_int8(heads, span, rows, _cache_range(heads, span, kv_head, segment, 1), scratch, partial)


@jit
def _cache_range(heads, span, kv_head, segment, size):
    """The positions of a segment that a span sees, for a KV head whose numbers are of `size` bytes, or will be."""
    layer, base = heads.layer, segment * SEGMENT
    keys = layer.offset + kv_head * head_bytes(layer)
    scales = keys + numbers_bytes(layer, size) if layer.kind == INT8 else 0
    low = max(first_seen(span.position, heads), base)
    high = min(span.position + span.tokens, base + SEGMENT) - 1
    values, newest = keys + key_bytes(layer, size), span.position // PAGE
    return CacheRange(span.pages, keys, values, scales, base, low, high, newest)


def _single(load, size):
    one, two, three, four = (query_block(load, size, n, True) for n in (1, 2, 3, 4))

    @jit
    def single(heads, span, rows, cache, scratch, partial):
        """The heads of a single token, straight from the pages, up to 4 at once."""
        for begin in range(0, heads.heads_per_kv, 4):
            queries = Queries(rows + 4 * query_width(heads) * begin, begin, min(heads.heads_per_kv - begin, 4))
            if queries.count == 1:
                one(heads, span, queries, cache, scratch.scores, partial)
            elif queries.count == 2:
                two(heads, span, queries, cache, scratch.scores, partial)
            elif queries.count == 3:
                three(heads, span, queries, cache, scratch.scores, partial)
            else:
                four(heads, span, queries, cache, scratch.scores, partial)

    return single


_single_f16, _single_int8 = _single(load_wide_f16, 2), _single(load_wide_i8, 1)
_block = query_block(load_wide_f32, 4, QUERY_BLOCK, False)
_small_block = query_block(load_wide_f32, 4, SMALL_QUERY_BLOCK, False)


@jit
def _many(heads, span, rows, cache, scratch, partial):
    """All queries of a span over f32 pages, a block at a time."""
    begin, end = 0, span.tokens * heads.heads_per_kv
    while begin < end:
        # A large block may be filled in part only: it is faster than several small ones.
        most = QUERY_BLOCK if end - begin > 2 * QUERY_BLOCK // 3 else SMALL_QUERY_BLOCK
        queries = Queries(rows + 4 * query_width(heads) * begin, begin, min(end - begin, most))
        seen = _seen(heads, span, queries, cache)
        if seen.low > seen.high:
            for query in range(begin, begin + queries.count):
                put_f32(partial.peaks + 4 * query, NEVER)
        elif most == QUERY_BLOCK:
            _block(heads, span, queries, seen, scratch.scores, partial)
        else:
            _small_block(heads, span, queries, seen, scratch.scores, partial)
        begin += queries.count


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
    """Widen the head of a range to f32: the range, in a table of pages in which the head stands where it did."""
    size, first = widened_bytes(heads.layer), cache.base // PAGE
    table = scratch.widened + SEGMENT // PAGE * size - 8 * first
    for page in range(cache.low // PAGE, cache.high // PAGE + 1):
        out = scratch.widened + size * (page - first)
        widen(heads.layer, get_i64(cache.pages + 8 * page) + cache.keys, out)
        put_i64(table + 8 * page, out - cache.keys)
    return CacheRange(table, cache.keys, cache.values, cache.scales, cache.base, cache.low, cache.high, cache.newest)
