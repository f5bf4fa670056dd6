"""How threads share the attention of a batch over one layer: grouped heads, causal, with or without a window.

The logits of a token must not depend on what else is computed. So every query attends to segments of `SEGMENT`
positions, each with a maximum, a sum and weighted values of its own, and these are merged in order, whatever other
queries share a call or a thread.

Work is handed out as pairs of a span of query tokens and a KV head. Where every span is one token, each thread begins
with pairs whose keys and values it has just stored. Where pairs are few and contexts long, the segments of a pair go to
different threads: each leaves its partial in memory, and the thread that finishes the last one merges them.

`segments.py` computes a segment, `merge.py` merges; the interpreter calls `attend`.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.attention.merge import add_partial, clear_total, write_heads
from quantkit_kernels.attention.operands import (
    SEGMENT,
    Pair,
    Span,
    first_seen,
    partial_at,
    partial_bytes,
    scratch_at,
)
from quantkit_kernels.attention.pages import padded
from quantkit_kernels.attention.segments import attend_segment, prepare
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.threads import Taker, take_next
from quantkit_kernels.simd import atomic_add, atomic_store, get_i64

SPLIT_BELOW = 4
"""Pairs are split into segments where there are fewer than this for each thread."""
CHUNKS = 8
"""Chunks of segments for each thread, where pairs are split."""
PARTIALS_BYTES = 8 << 20
"""Memory for the partials of split pairs; what needs more is not split."""
ARRIVALS_BYTES = 64
"""A cache line for each pair that is split: how many of its segments are finished."""
SPAN_BYTES = 8 * len(Span._fields)


class Pieces(NamedTuple):
    """How the attention of a batch over one layer is handed out."""

    count: int
    """Pieces of work: pairs of a span and a KV head, or `segments` for each of them."""
    segments: int
    chunk: int
    """Pieces that a thread takes at once."""
    own: int
    """1: each thread has a share of its own, of consecutive pairs; 0: all take pairs of the latest tokens first."""
    arrivals: int
    """Address of the pairs' counters of finished segments."""
    partials: int
    """Address of the first piece's partial."""
    partial_bytes: int
    """Bytes from one piece's partial to the next."""


def partials_bytes(threads: int) -> int:
    """Bytes of memory that threads share for attention, zero at first."""
    return PARTIALS_BYTES + ARRIVALS_BYTES * SPLIT_BELOW * threads


@jit
def pieces_of(heads, tokens, spans, span_table, threads, memory):
    """Return the `Pieces` of a batch of so many tokens in so many spans, over one layer.

    `memory` is the address of the `partials_bytes` that threads share.
    """
    pairs = spans * heads.layer.kv_heads
    if pairs < SPLIT_BELOW * threads:
        segments, queries = _largest(heads, spans, span_table)
        size = partial_bytes(queries, heads.layer.v_head_dim)
        if segments > 1 and pairs * segments * size <= PARTIALS_BYTES:
            chunk = max(1, pairs * segments // (CHUNKS * threads))
            partials = memory + ARRIVALS_BYTES * SPLIT_BELOW * threads
            return Pieces(pairs * segments, segments, chunk, 0, memory, partials, size)
    own = tokens == spans and spans >= threads
    return Pieces(pairs, 1, 1, int(own), memory, memory, 0)


@jit
def attend(heads, q, out, span_table, pieces, counter, now, scratch):
    """One thread's share of the attention of a batch over one layer; returns how many pieces it did.

    Parameters
    ----------
    heads : Heads
        What the step says.
    q, out : Rows
        f32 rows of all query heads, one for each token of the batch.
    span_table : int
        Address of the batch's `Span`s, i64.
    pieces : Pieces
        What `pieces_of` returned. Its counters of finished segments are zero again when the step is over.
    counter : int
        Address of the step's work counters.
    now : layout.PART
        The thread's part in the pass, or a `Taker`.
    scratch : int
        Address of `scratch_bytes` of this thread's own.
    """
    places, kv_heads = scratch_at(scratch, heads), heads.layer.kv_heads
    taker = Taker(now.thread, now.threads, now.tag, now.counter_stride) if pieces.own else Taker(0, 1, now.tag, 0)
    turn, taken, prepared = 0, 0, -1
    while True:
        turn, begin, end = take_next(counter, taker, turn, pieces.count, kv_heads if pieces.own else 1, pieces.chunk)
        if begin == end:
            return taken
        for number in range(begin, end):
            index, following = _pair_numbers(pieces, number, now.threads)
            pair, next_pair = _pair_at(span_table, kv_heads, index), _pair_at(span_table, kv_heads, following)
            if pieces.segments == 1:
                _attend_pair(heads, pair, next_pair, q, out, places)
                continue
            if index != prepared:
                prepare(heads, pair, q, places)
                prepared = index
            _attend_piece(heads, pair, next_pair, number, out, places, pieces)
        taken += end - begin


@jit
def _pair_numbers(pieces, number, threads):
    """Numbers of the pair of a piece, and of the pair that its thread most likely attends to next."""
    if pieces.segments > 1:
        pair = number // pieces.segments
        return pair, min(pair + 1, pieces.count // pieces.segments - 1)
    if pieces.own:
        return number, min(number + 1, pieces.count - 1)
    # The latest tokens come first: they see most, and threads are to finish together.
    pair = pieces.count - 1 - number
    return pair, max(pair - threads, 0)


@jit
def _attend_pair(heads, pair, following, q, out, scratch):
    """All segments of a pair."""
    queries, channels = pair.span.tokens * heads.heads_per_kv, padded(heads.layer.v_head_dim)
    partial, total = partial_at(scratch.partial, queries), partial_at(scratch.total, queries)
    first, last = _segments(pair.span, heads)
    prepare(heads, pair, q, scratch)
    if first == last:
        attend_segment(heads, pair, first, following, scratch, total)
    else:
        clear_total(total, queries, channels)
        for segment in range(first, last + 1):
            attend_segment(heads, pair, segment, following, scratch, partial)
            add_partial(partial, total, queries, channels, scratch.factors)
    write_heads(heads, pair, total, out)


@jit
def _attend_piece(heads, pair, following, piece, out, scratch, pieces):
    """One segment of a split pair; and the merge of all its segments, if it is the last one to be finished."""
    index, segment = piece // pieces.segments, piece % pieces.segments
    first, last = _segments(pair.span, heads)
    if first + segment > last:
        return
    queries, channels = pair.span.tokens * heads.heads_per_kv, padded(heads.layer.v_head_dim)
    partials = pieces.partials + pieces.partial_bytes * (piece - segment)
    partial = partial_at(partials + pieces.partial_bytes * segment, queries)
    attend_segment(heads, pair, first + segment, following, scratch, partial)
    arrived = pieces.arrivals + ARRIVALS_BYTES * index
    if atomic_add(arrived, 1) < last - first:
        return
    atomic_store(arrived, 0)
    total = partial_at(scratch.total, queries)
    clear_total(total, queries, channels)
    for earlier in range(last - first + 1):
        partial = partial_at(partials + pieces.partial_bytes * earlier, queries)
        add_partial(partial, total, queries, channels, scratch.factors)
    write_heads(heads, pair, total, out)


@jit
def _span_at(table, index):
    span = table + SPAN_BYTES * index
    return Span(get_i64(span), get_i64(span + 8), get_i64(span + 16), get_i64(span + 24))


@jit
def _pair_at(table, kv_heads, index):
    return Pair(_span_at(table, index // kv_heads), index % kv_heads)


@jit
def _largest(heads, spans, span_table):
    """Most segments, and most queries, of a span."""
    segments, queries = 1, 0
    for index in range(spans):
        span = _span_at(span_table, index)
        first, last = _segments(span, heads)
        segments, queries = max(segments, last - first + 1), max(queries, span.tokens * heads.heads_per_kv)
    return segments, queries


@jit
def _segments(span, heads):
    """First and last segment that a span sees."""
    return first_seen(span.position, heads) // SEGMENT, (span.position + span.tokens - 1) // SEGMENT
