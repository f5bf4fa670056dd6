"""Attention of some queries over one segment of the KV cache: scores, weights and weighted values, a part of the whole.

A single query token reads each key and value once, straight from the pages, for up to 4 heads at once: as fast as
memory. A run of tokens widens the segment to f32 first, in memory of the thread's own, and multiplies it as a matrix,
`BLOCK` queries (tokens times heads) at once.

Every query has one order of accumulation, whatever other queries share a register tile, and however wide registers are:
scores channel after channel; the sum of weights in 16 lanes, position after position, then folded; weighted values
position after position. `kv_pages.py` lays out pages; `functions.py` has exp; `attention.py` hands out the work and
merges parts.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.attention.pages import (
    F16,
    F32,
    GROUP,
    INT8,
    PAGE,
    head_bytes,
    numbers_bytes,
    padded,
    rotate,
    widen,
    widened_bytes,
)
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp_negative
from quantkit_kernels.simd import (
    TILES,
    blend_first,
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
    zeros_wide,
)

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


class Heads(NamedTuple):
    """What is the same for all queries of a step."""

    kind: int
    """`blocks.Kind.code` of the cache."""
    offset: int
    """Bytes from the start of a page to the layer's first head."""
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


# --- memory of a thread, and parts ---------------------------------------------------------------------------------


@jit
def rounded(queries):
    """Queries, rounded up to whole blocks and whole vectors."""
    return (queries + BLOCK + 15) & ~15


@jit
def part_bytes_of(queries, head_dim):
    """Bytes of a part: of each query the maximum, the sum, and the row of weighted values."""
    return 4 * rounded(queries) * (2 + padded(head_dim))


@jit
def scratch_places(scratch, heads):
    """Where in a thread's memory stand, after the scores of a block: rows of queries, a part, the sum of parts, factors
    of both, widened pages."""
    queries, head_dim = RUN * heads.group, heads.head_dim
    rows = scratch + BLOCK * ROW
    part = rows + 4 * rounded(queries) * padded(head_dim)
    total = part + part_bytes_of(queries, head_dim)
    factors = total + part_bytes_of(queries, head_dim)
    wide = factors + 8 * rounded(queries)
    return rows, part, total, factors, wide


def scratch_bytes(group: int, head_dim: int) -> int:
    """Bytes of memory of its own that a thread needs for `attend`."""
    queries, channels = (RUN * group + BLOCK + 15) & ~15, padded.py_func(head_dim)
    pages = SEGMENT // PAGE * (2 * PAGE * channels * 4 + 8 * PAGE)
    return BLOCK * ROW + 4 * queries * (channels + 2 * (2 + channels) + 2) + pages + 64


# --- one block of queries and one segment --------------------------------------------------------------------------


def _block(load, size, n, single):
    """The kernel for `n` queries at once and one kind of cache: `load` widens its numbers, which have `size` bytes.

    Those of a `single` token ask for what they will read next, and where registers are left hold two steps in them.
    """
    step = 2 * STEP if single and n <= 2 * TILES else STEP

    @jit
    def scores(q, width, keys, table):
        """Scores of `STEP` positions, into rows of the table."""
        acc = zeros_wide(TILES, n)
        ahead = PAGE * padded(width) * size
        for _ in range(width):
            if single:
                prefetch(keys + ahead)
            acc = fma_outer(load(keys, acc), q, 4 * width, acc)
            q += 4
            keys += GROUP * size
        store_grid(table, 64, ROW, acc)

    @jit
    def two_scores(q, width, keys, far, table):
        """Scores of twice as many positions, the second half `far` behind the first."""
        a, b = zeros_wide(TILES, n), zeros_wide(TILES, n)
        ahead = PAGE * padded(width) * size
        for _ in range(width):
            prefetch(keys + ahead)
            a = fma_outer(load(keys, a), q, 4 * width, a)
            prefetch(keys + far + ahead)
            b = fma_outer(load(keys + far, b), q, 4 * width, b)
            q += 4
            keys += GROUP * size
        store_grid(table, 64, ROW, a)
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
            if step > STEP and position + STEP <= high:
                two_scores(q, width, place, far, table + 4 * (position - base))
            else:
                scores(q, width, place, table + 4 * (position - base))
        scales = head + numbers_bytes(heads.head_dim, size) if scaled else 0
        peaks = part + 4 * begin
        totals = peaks + 4 * part_rows
        # One query after the other would wait for its own maximum before its exponentials.
        for j in range(count):
            at = run.position + (begin + j) // heads.group
            first = first_seen(at, heads.window)
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
def attend_segment(heads, run, kv_head, q, segment, scratch, part):
    """The part of all queries of a run and a KV head, prepared at `q`, for one segment."""
    head = heads.offset + kv_head * head_bytes(heads.kind, heads.head_dim)
    base = segment * SEGMENT
    low = max(first_seen(run.position, heads.window), base)
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
        pages, rows = run.pages, rounded(heads.group)
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
    rows, scaled = rounded(queries), heads.kind == INT8
    left = queries
    while left > 0:
        begin, n = queries - left, _block_size(left)
        count = min(left, n)
        low = max(first_seen(run.position + begin // heads.group, heads.window), base)
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
def prepare(heads, run, kv_head, q, q_stride, scratch):
    """Rows `[width]` of a run's queries, one behind the other; returns their address."""
    width, row = _width(heads), 4 * heads.head_dim
    q += q_stride * run.first + row * heads.group * kv_head
    if run.tokens == 1 and heads.kind == F16:
        return q
    rows = scratch_places(scratch, heads)[0]
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
    wide, step = scratch_places(scratch, heads)[4], widened_bytes(heads.head_dim)
    first = base // PAGE
    table = wide + SEGMENT // PAGE * step - 8 * first
    for page in range(low // PAGE, high // PAGE + 1):
        out = wide + step * (page - first)
        widen(heads.kind, get_i64(run.pages + 8 * page) + head, heads.head_dim, out)
        put_i64(table + 8 * page, out - head)
    return table


@jit
def first_seen(position, window):
    """First position that a query at `position` sees."""
    return max(0, position - window + 1) if window else 0
