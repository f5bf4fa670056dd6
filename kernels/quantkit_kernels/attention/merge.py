"""Attention over a paged KV cache: grouped heads, causal, with or without a sliding window.

The logits of a token must not depend on what else is computed, so every query is attended to in segments of `SEGMENT`
positions, each with a maximum, a sum and weighted values of its own, and these are merged in order, whatever other
queries share a call or a thread.

Work is handed out as pairs of a run of query tokens and a KV head. Where pairs are few, and contexts long, segments of
a pair go to different threads: each leaves its part in memory, and whoever finishes the last of them merges.
`attention_segments.py` computes a part; `interpreter.py` calls `attend`.
"""

from __future__ import annotations

from quantkit_kernels.attention.pages import INT8, padded, rotate
from quantkit_kernels.attention.segments import (
    LEAST,
    NEVER,
    SEGMENT,
    Run,
    attend_segment,
    first_seen,
    part_bytes_of,
    prepare,
    rounded,
    scratch_places,
)
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.threads import take
from quantkit_kernels.rows.functions import exp_negative
from quantkit_kernels.simd import (
    atomic_add,
    atomic_store,
    fma,
    get_f32,
    get_i64,
    load_wide_f32,
    maximum,
    put_f32,
    splat_wide,
    store,
    where_less,
    zeros_wide,
)

SPLIT_BELOW = 4
"""Pairs for each thread, from which on they are not split into segments."""
PIECES = 8
"""Chunks of work for each thread, where pairs are split."""
PARTS_BYTES = 8 << 20
"""Memory for the parts of split pairs; what needs more is not split."""

RUN_BYTES = 8 * len(Run._fields)


@jit
def _run_at(table, index):
    run = table + RUN_BYTES * index
    return Run(get_i64(run), get_i64(run + 8), get_i64(run + 16), get_i64(run + 24))


def parts_bytes(threads: int) -> int:
    """Bytes of memory that threads share for `attend`, zero at first."""
    return PARTS_BYTES + 64 * SPLIT_BELOW * threads


@jit
def _clear(total, queries, channels):
    """A sum of no parts. Its numbers are -0, which leaves whatever is added to it as it is."""
    rows = rounded(queries)
    for query in range(0, rows, 16):
        store(total + 4 * query, splat_wide(NEVER))
        store(total + 4 * (rows + query), zeros_wide(1, 1))
    for place in range(0, 4 * queries * channels, 64):
        store(total + 8 * rows + place, splat_wide(-0.0))


@jit
def _merge(part, total, queries, channels, factors):
    """Add a segment's part to the sum, both brought to the larger of their maxima."""
    rows = rounded(queries)
    sums, least = 4 * rows, splat_wide(LEAST)
    for query in range(0, 4 * queries, 64):
        peak, part_peak = load_wide_f32(total + query, least), load_wide_f32(part + query, least)
        both = maximum(peak, part_peak)
        factor, part_factor = exp_negative(peak - both), exp_negative(part_peak - both)
        old, new = load_wide_f32(total + sums + query, least), load_wide_f32(part + sums + query, least)
        store(total + query, both)
        store(total + sums + query, where_less(least, part_peak, fma(old, factor, new * part_factor), old))
        store(factors + query, factor)
        store(factors + sums + query, part_factor)
    for query in range(queries):
        if get_f32(part + 4 * query) > LEAST:
            factor, part_factor = (
                splat_wide(get_f32(factors + 4 * query)),
                splat_wide(get_f32(factors + sums + 4 * query)),
            )
            row = 8 * rows + 4 * channels * query
            for place in range(row, row + 4 * channels, 64):
                new = load_wide_f32(part + place, least) * part_factor
                store(total + place, fma(load_wide_f32(total + place, least), factor, new))


@jit
def _finish(heads, run, kv_head, total, out, out_stride):
    """Divide by the sums, undo rotations, and write the heads of the group."""
    queries, channels = run.tokens * heads.group, padded(heads.head_dim)
    rows, whole = rounded(queries), heads.head_dim & ~15
    out += out_stride * run.first + 4 * heads.head_dim * heads.group * kv_head
    for query in range(queries):
        inverse = splat_wide(1.0 / get_f32(total + 4 * (rows + query)))
        row = total + 8 * rows + 4 * channels * query
        if heads.kind == INT8:
            rotate(row, channels, row)
        target = out + out_stride * (query // heads.group) + 4 * heads.head_dim * (query % heads.group)
        for place in range(0, 4 * whole, 64):
            store(target + place, load_wide_f32(row + place, inverse) * inverse)
        if whole < heads.head_dim:
            store(row, load_wide_f32(row + 4 * whole, inverse) * inverse)
            for channel in range(heads.head_dim - whole):
                put_f32(target + 4 * (whole + channel), get_f32(row + 4 * channel))


@jit
def _attend_pair(heads, run, kv_head, q, q_stride, out, out_stride, scratch):
    """All segments of a run of tokens and a KV head."""
    queries, channels = run.tokens * heads.group, padded(heads.head_dim)
    _, part, total, factors, _ = scratch_places(scratch, heads)
    first, last = _segments(run, heads.window)
    prepared = prepare(heads, run, kv_head, q, q_stride, scratch)
    if first == last:
        attend_segment(heads, run, kv_head, prepared, first, scratch, total)
    else:
        _clear(total, queries, channels)
        for segment in range(first, last + 1):
            attend_segment(heads, run, kv_head, prepared, segment, scratch, part)
            _merge(part, total, queries, channels, factors)
    _finish(heads, run, kv_head, total, out, out_stride)


@jit
def pieces_of(heads, runs, run_table, threads):
    """How the attention of a batch over one layer is handed out.

    Returns
    -------
    pieces, segments, part_bytes : int
        Pieces of work: pairs of a run and a KV head, or `segments` for each of them, with memory of `part_bytes` each.
    """
    pairs = runs * heads.kv_heads
    if pairs < SPLIT_BELOW * threads:
        segments, queries = _largest(heads, runs, run_table)
        part_bytes = part_bytes_of(queries, heads.head_dim)
        if segments > 1 and pairs * segments * part_bytes <= PARTS_BYTES:
            return pairs * segments, segments, part_bytes
    return pairs, 1, 0


@jit
def attend(
    heads, q, q_stride, out, out_stride, run_table, counter, tag, threads, pieces, segments, part_bytes, scratch, parts
):
    """One thread's share of the attention of a batch over one layer; returns how many pieces it did.

    Parameters
    ----------
    heads : Heads
        What the step says.
    q, out : int
        f32 rows of all heads, one for each token of the batch.
    run_table : int
        Address of the batch's `Run`s, i64.
    counter, tag : int
        The step's work counter, and the pass's tag.
    threads : int
        Threads that share the step.
    pieces, segments, part_bytes : int
        What `pieces_of` returned.
    scratch : int
        `scratch_bytes` of this thread's own.
    parts : int
        `parts_bytes` of all threads; the counters at its start are zero again when the step is over.
    """
    taken, chunk = 0, max(1, pieces // (PIECES * threads)) if segments > 1 else 1
    first_part, prepared, prepared_pair = parts + 64 * SPLIT_BELOW * threads, 0, -1
    while True:
        begin = take(counter, tag, chunk, pieces)
        if begin >= pieces:
            return taken
        end = min(begin + chunk, pieces)
        for number in range(begin, end):
            # Whole pairs begin with the latest tokens, which see most, so that threads finish together.
            piece = number if segments > 1 else pieces - 1 - number
            pair = piece // segments
            run, kv_head = _run_at(run_table, pair // heads.kv_heads), pair % heads.kv_heads
            if segments == 1:
                _attend_pair(heads, run, kv_head, q, q_stride, out, out_stride, scratch)
                continue
            if pair != prepared_pair:
                prepared, prepared_pair = prepare(heads, run, kv_head, q, q_stride, scratch), pair
            index, arrived = piece % segments, parts + 64 * pair
            pair_parts = first_part + part_bytes * (piece - index)
            _attend_piece(
                heads, run, kv_head, index, prepared, out, out_stride, scratch, pair_parts, part_bytes, arrived
            )
        taken += end - begin


@jit
def _attend_piece(heads, run, kv_head, index, prepared, out, out_stride, scratch, parts, part_bytes, arrived):
    """One segment of a pair that is split into parts; and the merging of all, if it is the last of them."""
    first, last = _segments(run, heads.window)
    if first + index > last:
        return
    attend_segment(heads, run, kv_head, prepared, first + index, scratch, parts + part_bytes * index)
    if atomic_add(arrived, 1) < last - first:
        return
    atomic_store(arrived, 0)
    _, _, total, factors, _ = scratch_places(scratch, heads)
    queries, channels = run.tokens * heads.group, padded(heads.head_dim)
    _clear(total, queries, channels)
    for earlier in range(last - first + 1):
        _merge(parts + part_bytes * earlier, total, queries, channels, factors)
    _finish(heads, run, kv_head, total, out, out_stride)


@jit
def _largest(heads, runs, run_table):
    """Most segments, and most queries, of a run."""
    segments, queries = 1, 0
    for index in range(runs):
        run = _run_at(run_table, index)
        first, last = _segments(run, heads.window)
        segments, queries = max(segments, last - first + 1), max(queries, run.tokens * heads.group)
    return segments, queries


@jit
def _segments(run, window):
    """First and last segment that a run sees."""
    return first_seen(run.position, window) // SEGMENT, (run.position + run.tokens - 1) // SEGMENT
