"""What the kernels of attention take: heads, spans of query tokens, ranges of the cache, and the memory they work in.

`pages.py` lays out the cache that a `CacheRange` points into; `query_blocks.py`, `segments.py`, `merge.py` and
`sharing.py` compute.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.attention.pages import Layer, padded
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import TILES

SEGMENT = 128
"""Positions whose maximum and sum are taken together: two pages."""
SPAN_TOKENS = 32
"""Tokens of a span at most."""
QUERY_BLOCK, SMALL_QUERY_BLOCK = 6 * TILES, 4
"""Queries that are multiplied at once: as many as registers hold; and where there are few."""
LANE_ROWS = 3
"""Vectors that the softmax keeps of each query."""
SCORES_STRIDE = 4 * (SEGMENT + 16)
"""Bytes from one query's scores to the next: not a power of two, which would crowd a few sets of the cache."""
LOG2_E = 1.4426950408889634
"""Scores are multiplied by this, so that weights are powers of two."""
NEVER, LEAST = -3.0e38, -2.9e38
"""Score of a position that a query does not see; scores that it sees are above the second."""


class Heads(NamedTuple):
    """What is the same for all queries of a step."""

    layer: Layer
    """The KV heads."""
    heads_per_kv: int
    """Query heads that share a KV head."""
    scale: float
    softcap: float
    """Limit that scores approach, 0 for none."""
    sinks: int
    """Address of an f32 score for each query head, which takes part in the softmax but has no value; 0 for none."""
    slopes: int
    """Address of an f32 number for each query head, by which scores fall from position to position; 0 for none."""
    window: int
    """Positions that a query sees, its own included; 0 for all before it."""
    chunked: int
    """1: positions stand in chunks of a window's length, and a query sees no other chunk than its own."""


class Span(NamedTuple):
    """Consecutive query tokens of one sequence."""

    first: int
    """Number of the first token in the batch."""
    tokens: int
    position: int
    """Position of the first token in its sequence."""
    pages: int
    """Address of the sequence's table of page addresses."""


class Pair(NamedTuple):
    """A span and one of the KV heads that it attends to: what a thread computes at a time."""

    span: Span
    kv_head: int


class Queries(NamedTuple):
    """Some of a span's queries for one KV head. They are numbered token by token, and within a token head by head."""

    rows: int
    """Address of the first one's row; the others follow, `padded(head_dim)` channels of f32 or int16 each."""
    factors: int
    """Address of f32 numbers: what makes scores of each one's products."""
    units: int
    """Address of f32 numbers that are computed: what makes results of each one's sums of weighted values."""
    lanes: int
    """Address of memory for `LANE_ROWS` rows of a vector for each of 16 queries."""
    first: int
    count: int


class Upcoming(NamedTuple):
    """Another range, of which a page is prefetched while a page of a range is read."""

    pages: int
    """Address of a table of page addresses."""
    shift: int
    """Pages from the one that is read to the one that is prefetched."""
    newest: int
    """Number of the last page that may be prefetched."""
    keys: int
    """Bytes from the start of a page to the keys."""


class CacheRange(NamedTuple):
    """Consecutive positions of one KV head, within one segment."""

    pages: int
    """Address of a table of page addresses."""
    keys: int
    """Bytes from the start of a page to the head's keys."""
    values: int
    """Bytes from the start of a page to the head's values."""
    scales: int
    """Address of f32 scales of the segment's keys, and behind them of its values; 0 where numbers have none."""
    base: int
    """First position of the segment."""
    low: int
    high: int
    """First and last position of the range."""
    upcoming: Upcoming


class Partial(NamedTuple):
    """An unmerged result: attention of some queries over some positions, f32 numbers at three addresses."""

    peaks: int
    """Each query's largest score, in units of log2(e)."""
    sums: int
    """Each query's sum of weights `2**(score - peak)`."""
    values: int
    """Each query's row of weighted values, `padded(v_head_dim)` channels."""


class Scratch(NamedTuple):
    """Addresses in a thread's own memory."""

    scores: int
    """Scores, then weights, of a block of queries: rows of f32 or int16, `SCORES_STRIDE` apart."""
    units: int
    """`Queries.units` of a block."""
    lanes: int
    """`Queries.lanes` of a block."""
    queries: int
    """Rows of a span's queries for one KV head."""
    query_factors: int
    """`Queries.factors` of all of them."""
    partial: int
    total: int
    factors: int
    """Two f32 numbers for each query: what a merge multiplies the total and the partial by."""
    widened: int
    """The pages of a segment, widened to int16."""
    scales: int
    """`CacheRange.scales` of a segment."""


@jit
def rounded(queries):
    """Queries, rounded up to whole vectors, with room for one behind the last query."""
    return (queries + 31) & ~15


@jit
def partial_bytes(queries, v_head_dim):
    """Bytes of a partial of so many queries."""
    return 4 * rounded(queries) * (2 + padded(v_head_dim))


@jit
def partial_at(address, queries):
    """The partial of so many queries in the memory at `address`."""
    rows = rounded(queries)
    return Partial(address, address + 4 * rows, address + 8 * rows)


@jit
def scratch_at(address, heads):
    """The addresses in a thread's memory of `scratch_bytes`."""
    queries, layer = SPAN_TOKENS * heads.heads_per_kv, heads.layer
    units = address + QUERY_BLOCK * SCORES_STRIDE
    lanes = units + 64
    rows = lanes + 64 * 16 * LANE_ROWS
    query_factors = rows + 4 * rounded(queries) * padded(layer.head_dim)
    partial = query_factors + 4 * rounded(queries)
    total = partial + partial_bytes(queries, layer.v_head_dim)
    factors = total + partial_bytes(queries, layer.v_head_dim)
    scales = factors + 8 * rounded(queries)
    return Scratch(address, units, lanes, rows, query_factors, partial, total, factors, scales + 8 * SEGMENT, scales)


def scratch_bytes(heads_per_kv: int, head_dim: int, v_head_dim: int) -> int:
    """Bytes of memory of its own that a thread needs for attention."""
    queries = rounded.py_func(SPAN_TOKENS * heads_per_kv)
    keys, values = padded.py_func(head_dim), padded.py_func(v_head_dim)
    block = QUERY_BLOCK * SCORES_STRIDE + 64 + 64 * 16 * LANE_ROWS
    return block + 4 * queries * (keys + 1 + 2 * (2 + values) + 2) + 8 * SEGMENT + 2 * SEGMENT * (keys + values) + 64


@jit
def first_seen(position, heads):
    """First position that a query at `position` sees; that of a later query is never smaller."""
    if not heads.window:
        return 0
    return position // heads.window * heads.window if heads.chunked else max(0, position - heads.window + 1)
