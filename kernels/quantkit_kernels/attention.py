"""Attention over a paged KV cache: grouped heads, causal, with or without a sliding window.

The logits of a token must not depend on what else is computed, so every query has one order of accumulation, whatever
other queries share a register tile, a call or a thread, and however wide registers are: scores channel after channel;
positions in segments of `SEGMENT`, each with its own maximum, sum (16 lanes, position after position, then folded) and
weighted values (position after position); segments merged in order.

Work is handed out as pairs of a run of query tokens and a KV head. Where pairs are few, and contexts long, segments of
a pair go to different threads: each leaves its part in memory, and whoever finishes the last of them merges.

A single query token reads each key and value once, straight from the pages, for up to 4 heads at once: as fast as
memory. A run of tokens widens each segment to f32 first, in memory of the thread's own, and multiplies it as a matrix,
`BLOCK` queries (tokens times heads) at once. `kv_pages.py` lays out pages; `functions.py` has exp; `interpreter.py`
calls `attend`, the only function for others here.
"""

from __future__ import annotations

from typing import NamedTuple

from .functions import exp_negative
from .jit import jit
from .kv_pages import F16, F32, GROUP, INT8, PAGE, head_bytes, numbers_bytes, padded, rotate, widen, widened_bytes
from .simd import (
    TILES,
    atomic_add,
    atomic_store,
    blend_first,
    fma,
    fma_outer,
    get_f32,
    get_i64,
    load_wide_f16,
    load_wide_f32,
    load_wide_i8,
    load_wide_partial_f32,
    max_lanes,
    maximum,
    prefetch,
    put_f32,
    put_i64,
    splat_wide,
    store,
    store_grid,
    sum_lanes,
    where_less,
    zeros_wide,
)
from .threads import take

SEGMENT = 128
"""Positions whose maximum and sum are taken together: two pages."""
RUN = 32
"""Query tokens of a run at most."""
BLOCK, SMALL_BLOCK = 6 * TILES, 4
"""Queries that are multiplied at once with a segment of f32: as many as registers hold; and at the end of a run."""
STEP = 16 * TILES
"""Positions, or channels, that a register tile holds."""
ROW = 4 * (SEGMENT + 16)
"""Bytes from one query's scores to the next: not a power of two, which would crowd a few sets of the cache."""
NEVER, LEAST = -3.0e38, -2.9e38
"""Score of a position that a query does not see; scores that it sees are above the second."""
SPLIT_BELOW = 4
"""Pairs for each thread, from which on they are not split into segments."""
PIECES = 8
"""Chunks of work for each thread, where pairs are split."""
PARTS_BYTES = 8 << 20
"""Memory for the parts of split pairs; what needs more is not split."""


class Heads(NamedTuple):
    """What is the same for all queries of a step."""

    kind: int
    """`blocks.Kind.code` of the cache."""
    layer: int
    kv_heads: int
    group: int
    """Query heads that share a KV head."""
    head_dim: int
    scale: float
    window: int
    """Positions that a query sees, its own included; 0 for all before it."""


class Run(NamedTuple):
    """Consecutive query tokens of one sequence."""

    first: int
    """Its number in the batch."""
    tokens: int
    position: int
    """Of the first."""
    pages: int
    """Address of the sequence's table of page addresses."""


RUN_BYTES = 8 * len(Run._fields)


@jit
def _run_at(table, index):
    run = table + RUN_BYTES * index
    return Run(get_i64(run), get_i64(run + 8), get_i64(run + 16), get_i64(run + 24))


# --- memory of a thread, and parts ---------------------------------------------------------------------------------


@jit
def _whole(queries):
    """Queries, rounded up to whole blocks and whole vectors."""
    return (queries + BLOCK + 15) & ~15


@jit
def _part_bytes(queries, head_dim):
    """Bytes of a part: of each query the maximum, the sum, and the row of weighted values."""
    return 4 * _whole(queries) * (2 + padded(head_dim))


@jit
def _scratch_places(scratch, heads):
    """Where in a thread's memory stand, after the scores of a block: rows of queries, a part, the sum of parts, factors
    of both, widened pages."""
    queries, head_dim = RUN * heads.group, heads.head_dim
    rows = scratch + BLOCK * ROW
    part = rows + 4 * _whole(queries) * padded(head_dim)
    total = part + _part_bytes(queries, head_dim)
    factors = total + _part_bytes(queries, head_dim)
    wide = factors + 8 * _whole(queries)
    return rows, part, total, factors, wide


def scratch_bytes(group: int, head_dim: int) -> int:
    """Bytes of memory of its own that a thread needs for `attend`."""
    queries, channels = (RUN * group + BLOCK + 15) & ~15, padded.py_func(head_dim)
    pages = SEGMENT // PAGE * (2 * PAGE * channels * 4 + 8 * PAGE)
    return BLOCK * ROW + 4 * queries * (channels + 2 * (2 + channels) + 2) + pages + 64


def parts_bytes(threads: int) -> int:
    """Bytes of memory that threads share for `attend`, zero at first."""
    return PARTS_BYTES + 64 * SPLIT_BELOW * threads


# --- one block of queries and one segment --------------------------------------------------------------------------


def _block(load, size, n, single):
    """The kernel for `n` queries at once and one kind of cache: `load` widens its numbers, which have `size` bytes.

    Those of a `single` token ask for what they will read next, and where registers are left hold two steps in them.
    """
    step = 2 * STEP if single and n <= 2 * TILES else STEP

    @jit
    def scores(q, width, keys, far, table):
        """Scores of `step` positions, the second half `far` behind the first, into rows of the table."""
        a, b = zeros_wide(TILES, n), zeros_wide(TILES, n)
        ahead = PAGE * padded(width) * size
        for _ in range(width):
            if single:
                prefetch(keys + ahead)
            a = fma_outer(load(keys, a), q, 4 * width, a)
            if step > STEP:
                prefetch(keys + far + ahead)
                b = fma_outer(load(keys + far, b), q, 4 * width, b)
            q += 4
            keys += GROUP * size
        store_grid(table, 64, ROW, a)
        if step > STEP:
            store_grid(table + 4 * STEP, 64, ROW, b)

    @jit
    def values(channel, far, channels, pages, newest, head, low, high, base, table, out):
        """The values of positions `low` to `high`, weighted by the rows of the table: `step` channels, the second half
        `far` behind the first."""
        a, b = zeros_wide(TILES, n), zeros_wide(TILES, n)
        row_bytes = channels * size
        position = low
        while position <= high:
            end = min(high, position | (PAGE - 1))
            first = PAGE * row_bytes + (position & (PAGE - 1)) * row_bytes + channel * size
            v = get_i64(pages + 8 * (position >> 6)) + head + first
            weight = table + 4 * (position - base)
            if single:
                # The keys of the next segment.
                ahead = get_i64(pages + 8 * min((position >> 6) + SEGMENT // PAGE, newest)) + head + first
                ahead -= PAGE * row_bytes
            for _ in range(end + 1 - position):
                if single:
                    prefetch(ahead)
                a = fma_outer(load(v, a), weight, ROW, a)
                if step > STEP:
                    prefetch(ahead + far * size)
                    b = fma_outer(load(v + far * size, b), weight, ROW, b)
                if single:
                    ahead += row_bytes
                v += row_bytes
                weight += 4
            position = end + 1
        store_grid(out + 4 * channel, 64, 4 * channels, a)
        if step > STEP:
            store_grid(out + 4 * (channel + far), 64, 4 * channels, b)

    @jit
    def block(heads, run, q, begin, count, pages, head, low, high, base, scaled, table, part, part_rows):
        """Queries `begin` to `begin + count` of a run over positions `low` to `high` of the segment at `base`."""
        width, channels = _width(heads), padded(heads.head_dim)
        far = (channels * GROUP if step > GROUP else STEP) * size
        for position in range(low & -step, high + 1, step):
            keys = position // GROUP % (PAGE // GROUP) * channels * GROUP + position % GROUP
            place = get_i64(pages + 8 * (position >> 6)) + head + keys * size
            scores(q, width, place, far, table + 4 * (position - base))
        scales = head + numbers_bytes(heads.head_dim, size) if scaled else 0
        peaks = part + 4 * begin
        totals = peaks + 4 * part_rows
        # One query after the other would wait for its own maximum before its exponentials.
        for j in range(count):
            at = run.position + (begin + j) // heads.group
            first = _first_seen(at, heads.window)
            put_f32(peaks + 4 * j, _mask(table + ROW * j, heads.scale, low, high, base, first, at, pages, scales))
        for j in range(count):
            peak = get_f32(peaks + 4 * j)
            put_f32(totals + 4 * j, _weigh(table + ROW * j, peak, low, high, base, pages, scales))
        rows = part + 8 * part_rows + 4 * channels * begin
        for channel in range(0, channels, step):
            # Where channels end within a step, some are computed twice.
            near, last = min(channel, channels - STEP), max(channels - STEP, 0)
            values(
                near, min(channel + STEP, last) - near, channels, pages, run.position // PAGE, head, low, high, base,
                table, rows,
            )  # fmt: skip

    return block


@jit
def _mask(row, scale, low, high, base, first, last, pages, scales):
    """Scale a query's scores, and lower those that it does not see to `NEVER`; returns the maximum.

    Scores of int8 keys are multiplied by the keys' scales; `scales` says where in a page they are, or is 0.
    """
    factor, largest = splat_wide(scale), splat_wide(NEVER)
    for position in range(low & ~15, high + 1, 16):
        place = row + 4 * (position - base)
        score = load_wide_f32(place, factor) * factor
        if scales:
            score = score * load_wide_f32(_scales_at(pages, scales, position), factor)
        if position + 15 > last or position < first:
            score = blend_first(last + 1 - position, score, splat_wide(NEVER))
            score = blend_first(first - position, splat_wide(NEVER), score)
        store(place, score)
        largest = maximum(largest, score)
    return max_lanes(largest)


@jit
def _weigh(row, peak, low, high, base, pages, scales):
    """Turn a query's scores into weights `exp(score - peak)`; returns their sum.

    Weights of int8 values are then multiplied by the values' scales.
    """
    total, peaks = zeros_wide(1, 1), splat_wide(peak)
    for position in range(low & ~15, high + 1, 16):
        place = row + 4 * (position - base)
        weight = exp_negative(load_wide_f32(place, peaks) - peaks)
        total = total + weight
        if scales:
            weight = weight * load_wide_f32(_scales_at(pages, scales, position) + 4 * PAGE, peaks)
        store(place, weight)
    return sum_lanes(total)


@jit
def _scales_at(pages, scales, position):
    return get_i64(pages + 8 * (position >> 6)) + scales + 4 * (position & (PAGE - 1))


# --- one segment ---------------------------------------------------------------------------------------------------


@jit
def _segment(heads, run, kv_head, q, segment, scratch, part):
    """The part of all queries of a run and a KV head, prepared at `q`, for one segment."""
    head = (heads.layer * heads.kv_heads + kv_head) * head_bytes(heads.kind, heads.head_dim)
    base = segment * SEGMENT
    low = max(_first_seen(run.position, heads.window), base)
    high = min(run.position + run.tokens, base + SEGMENT) - 1
    if heads.kind == F32:
        _many(heads, run, q, run.pages, head, high, base, scratch, part)
    elif run.tokens > 1:
        _many(heads, run, q, _widened(heads, run, head, low, high, base, scratch), head, high, base, scratch, part)
    elif heads.kind == F16:
        _single_f16(heads, run, q, head, low, high, base, scratch, part)
    else:
        _single_int8(heads, run, q, head, low, high, base, scratch, part)


def _single(one, two, three, four, scaled):
    @jit
    def single(heads, run, q, head, low, high, base, scratch, part):
        """One token, straight from the pages, up to 4 heads at once."""
        pages, rows = run.pages, _whole(heads.group)
        for begin in range(0, heads.group, 4):
            n = min(heads.group - begin, 4)
            if n == 1:
                one(heads, run, q, begin, n, pages, head, low, high, base, scaled, scratch, part, rows)
            elif n == 2:
                two(heads, run, q, begin, n, pages, head, low, high, base, scaled, scratch, part, rows)
            elif n == 3:
                three(heads, run, q, begin, n, pages, head, low, high, base, scaled, scratch, part, rows)
            else:
                four(heads, run, q, begin, n, pages, head, low, high, base, scaled, scratch, part, rows)
            q += 16 * _width(heads)

    return single


_single_f16 = _single(*(_block(load_wide_f16, 2, n, True) for n in (1, 2, 3, 4)), False)
_single_int8 = _single(*(_block(load_wide_i8, 1, n, True) for n in (1, 2, 3, 4)), True)
_block_f32, _small_block_f32 = _block(load_wide_f32, 4, BLOCK, False), _block(load_wide_f32, 4, SMALL_BLOCK, False)


@jit
def _many(heads, run, q, pages, head, high, base, scratch, part):
    """All queries of a run over f32 pages, a block at a time."""
    queries = run.tokens * heads.group
    rows, scaled = _whole(queries), heads.kind == INT8
    left = queries
    while left > 0:
        begin, n = queries - left, _block_size(left)
        count = min(left, n)
        low = max(_first_seen(run.position + begin // heads.group, heads.window), base)
        end = min(run.position + (begin + count - 1) // heads.group, high)
        if low > end:
            for query in range(begin, begin + count):
                put_f32(part + 4 * query, NEVER)
        elif n == BLOCK:
            _block_f32(heads, run, q, begin, count, pages, head, low, end, base, scaled, scratch, part, rows)
        else:
            _small_block_f32(heads, run, q, begin, count, pages, head, low, end, base, scaled, scratch, part, rows)
        left -= count
        q += 4 * _width(heads) * count


@jit
def _block_size(left):
    """Queries of the next block, of which some may be empty."""
    return BLOCK if left > 2 * BLOCK // 3 else SMALL_BLOCK


@jit
def _width(heads):
    """Channels of a query: with the padding, if it is rotated."""
    return padded(heads.head_dim) if heads.kind == INT8 else heads.head_dim


@jit
def _prepare(heads, run, kv_head, q, q_stride, scratch):
    """Rows `[width]` of a run's queries, one behind the other; returns their address."""
    width, row = _width(heads), 4 * heads.head_dim
    q += q_stride * run.first + row * heads.group * kv_head
    if run.tokens == 1 and heads.kind == F16:
        return q
    rows = _scratch_places(scratch, heads)[0]
    for query in range(run.tokens * heads.group):
        place = q + q_stride * (query // heads.group) + row * (query % heads.group)
        target = rows + 4 * width * query
        if heads.kind == INT8:
            rotate(place, heads.head_dim, target)
        else:
            for channel in range(0, width, 16):
                store(target + 4 * channel, load_wide_partial_f32(place + 4 * channel, width - channel))
    return rows


@jit
def _widened(heads, run, head, low, high, base, scratch):
    """Widen a head's part of the pages of a segment to f32; returns a table that is read as the sequence's own."""
    wide, step = _scratch_places(scratch, heads)[4], widened_bytes(heads.head_dim)
    first = base // PAGE
    table = wide + SEGMENT // PAGE * step - 8 * first
    for page in range(low // PAGE, high // PAGE + 1):
        out = wide + step * (page - first)
        widen(heads.kind, get_i64(run.pages + 8 * page) + head, heads.head_dim, out)
        put_i64(table + 8 * page, out - head)
    return table


# --- all segments --------------------------------------------------------------------------------------------------


@jit
def _clear(total, queries, channels):
    """A sum of no parts. Its numbers are -0, which leaves whatever is added to it as it is."""
    rows = _whole(queries)
    for query in range(0, rows, 16):
        store(total + 4 * query, splat_wide(NEVER))
        store(total + 4 * (rows + query), zeros_wide(1, 1))
    for place in range(0, 4 * queries * channels, 64):
        store(total + 8 * rows + place, splat_wide(-0.0))


@jit
def _merge(part, total, queries, channels, factors):
    """Add a segment's part to the sum, both brought to the larger of their maxima."""
    rows = _whole(queries)
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
    rows, whole = _whole(queries), heads.head_dim & ~15
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
    _, part, total, factors, _ = _scratch_places(scratch, heads)
    first, last = _segments(run, heads.window)
    prepared = _prepare(heads, run, kv_head, q, q_stride, scratch)
    if first == last:
        _segment(heads, run, kv_head, prepared, first, scratch, total)
    else:
        _clear(total, queries, channels)
        for segment in range(first, last + 1):
            _segment(heads, run, kv_head, prepared, segment, scratch, part)
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
        part_bytes = _part_bytes(queries, heads.head_dim)
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
                prepared, prepared_pair = _prepare(heads, run, kv_head, q, q_stride, scratch), pair
            index, arrived = piece % segments, parts + 64 * pair
            pair_parts = first_part + part_bytes * (piece - index)
            _attend_segment(
                heads, run, kv_head, index, prepared, out, out_stride, scratch, pair_parts, part_bytes, arrived
            )
        taken += end - begin


@jit
def _attend_segment(heads, run, kv_head, index, prepared, out, out_stride, scratch, parts, part_bytes, arrived):
    """One segment of a pair that is split into parts; and the merging of all, if it is the last of them."""
    first, last = _segments(run, heads.window)
    if first + index > last:
        return
    _segment(heads, run, kv_head, prepared, first + index, scratch, parts + part_bytes * index)
    if atomic_add(arrived, 1) < last - first:
        return
    atomic_store(arrived, 0)
    _, _, total, factors, _ = _scratch_places(scratch, heads)
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
    return _first_seen(run.position, window) // SEGMENT, (run.position + run.tokens - 1) // SEGMENT


@jit
def _first_seen(position, window):
    """First position that a query at `position` sees."""
    return max(0, position - window + 1) if window else 0
