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
    Queries,
    first_seen,
)
from quantkit_kernels.attention.pages import (
    F16,
    F32,
    INT8,
    PAGE,
    head_bytes,
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
    width, row = query_width(heads), 4 * heads.head_dim
    source = q.address + q.stride * span.first + row * heads.heads_per_kv * kv_head
    if span.tokens == 1 and heads.kind == F16:
        return source
    for query in range(span.tokens * heads.heads_per_kv):
        place = source + q.stride * (query // heads.heads_per_kv) + row * (query % heads.heads_per_kv)
        target = scratch.queries + 4 * width * query
        if heads.kind == INT8:
            rotate(place, heads.head_dim, target)
        else:
            for channel in range(0, width, 16):
                store(target + 4 * channel, load_wide_partial_f32(place + 4 * channel, width - channel))
    return scratch.queries


@jit
def attend_segment(heads, span, kv_head, rows, segment, scratch, partial):
    """The partial of a span and a KV head, whose queries `prepare` left at `rows`, for one segment."""
    head = heads.offset + kv_head * head_bytes(heads.kind, heads.head_dim)
    base = segment * SEGMENT
    low = max(first_seen(span.position, heads.window), base)
    high = min(span.position + span.tokens, base + SEGMENT) - 1
    newest = span.position // PAGE
    if heads.kind == F32:
        _many(heads, span, rows, CacheRange(span.pages, head, 0, base, low, high, newest), scratch, partial)
    elif span.tokens > 1:
        scales = head + numbers_bytes(heads.head_dim, 4) if heads.kind == INT8 else 0
        pages = _widened(heads, span.pages, head, low, high, scratch)
        _many(heads, span, rows, CacheRange(pages, head, scales, base, low, high, newest), scratch, partial)
    elif heads.kind == F16:
        _single_f16(heads, span, rows, CacheRange(span.pages, head, 0, base, low, high, newest), scratch, partial)
    else:
        scales = head + numbers_bytes(heads.head_dim, 1)
        _single_int8(heads, span, rows, CacheRange(span.pages, head, scales, base, low, high, newest), scratch, partial)


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
    low = max(first_seen(earliest, heads.window), cache.base)
    return CacheRange(cache.pages, cache.head, cache.scales, cache.base, low, min(latest, cache.high), cache.newest)


@jit
def _widened(heads, pages, head, low, high, scratch):
    """Widen a head of the pages of positions `low` to `high`, which are in one segment, to f32.

    Returns the address of a table of pages, in which the head stands where it does in `pages`.
    """
    size, first = widened_bytes(heads.head_dim), low // SEGMENT * (SEGMENT // PAGE)
    table = scratch.widened + SEGMENT // PAGE * size - 8 * first
    for page in range(low // PAGE, high // PAGE + 1):
        out = scratch.widened + size * (page - first)
        widen(heads.kind, get_i64(pages + 8 * page) + head, heads.head_dim, out)
        put_i64(table + 8 * page, out - head)
    return table
