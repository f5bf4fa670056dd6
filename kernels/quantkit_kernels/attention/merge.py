"""Partials of attention merged into a total, segment after segment, and the total written out.

The order of segments is fixed, so the bits of a result do not depend on which thread computed which of them.
`segments.py` computes partials; `sharing.py` calls these functions.
"""

from __future__ import annotations

from quantkit_kernels.attention.operands import LEAST, LOG2_E, NEVER, rounded
from quantkit_kernels.attention.pages import INT8, padded, rotate
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp2_negative
from quantkit_kernels.simd import (
    fma,
    get_f32,
    load_wide_f32,
    maximum,
    put_f32,
    splat_wide,
    store,
    where_less,
    zeros_wide,
)


@jit
def clear_total(total, queries, channels):
    """Make the total of no partials. Its values are -0, to which any number can be added without changing a bit."""
    for query in range(0, rounded(queries), 16):
        store(total.peaks + 4 * query, splat_wide(NEVER))
        store(total.sums + 4 * query, zeros_wide(1, 1))
    for place in range(0, 4 * queries * channels, 64):
        store(total.values + place, splat_wide(-0.0))


@jit
def add_partial(partial, total, queries, channels, factors):
    """Add a segment's partial to the total: both are scaled to the larger of their maxima.

    `factors` is memory for two f32 numbers of each query.
    """
    partial_factors, least = factors + 4 * rounded(queries), splat_wide(LEAST)
    for query in range(0, 4 * queries, 64):
        peak, new_peak = load_wide_f32(total.peaks + query, least), load_wide_f32(partial.peaks + query, least)
        both = maximum(peak, new_peak)
        factor, new_factor = exp2_negative(peak - both), exp2_negative(new_peak - both)
        old, new = load_wide_f32(total.sums + query, least), load_wide_f32(partial.sums + query, least)
        store(total.peaks + query, both)
        store(total.sums + query, where_less(least, new_peak, fma(old, factor, new * new_factor), old))
        store(factors + query, factor)
        store(partial_factors + query, new_factor)
    for query in range(queries):
        if get_f32(partial.peaks + 4 * query) > LEAST:
            factor = splat_wide(get_f32(factors + 4 * query))
            new_factor = splat_wide(get_f32(partial_factors + 4 * query))
            row = 4 * channels * query
            for place in range(row, row + 4 * channels, 64):
                new = load_wide_f32(partial.values + place, least) * new_factor
                store(total.values + place, fma(load_wide_f32(total.values + place, least), factor, new))


@jit
def _inverse(heads, head, query, total):
    """What the values of a query's total are multiplied by: 1 over its sum of weights, its head's sink included."""
    weights = splat_wide(get_f32(total.sums + 4 * query))
    if not heads.sinks:
        return splat_wide(1.0) / weights
    peak = splat_wide(get_f32(total.peaks + 4 * query))
    sink = splat_wide(get_f32(heads.sinks + 4 * head) * LOG2_E)
    both = maximum(peak, sink)
    factor = exp2_negative(peak - both)
    return factor / fma(weights, factor, exp2_negative(sink - both))


@jit
def write_heads(heads, pair, total, out):
    """Divide a total by its sums, undo rotations, and write the query heads of a pair for all tokens of its span."""
    head_dim, span = heads.layer.v_head_dim, pair.span
    channels, whole = padded(head_dim), head_dim & ~15
    first, query, row = heads.heads_per_kv * pair.kv_head, 0, total.values
    for token in range(span.first, span.first + span.tokens):
        target = out.address + out.stride * token + 4 * head_dim * first
        for head in range(first, first + heads.heads_per_kv):
            inverse = _inverse(heads, head, query, total)
            if heads.layer.kind == INT8:
                rotate(row, channels, row)
            for place in range(0, 4 * whole, 64):
                store(target + place, load_wide_f32(row + place, inverse) * inverse)
            if whole < head_dim:
                store(row, load_wide_f32(row + 4 * whole, inverse) * inverse)
                for channel in range(head_dim - whole):
                    put_f32(target + 4 * (whole + channel), get_f32(row + 4 * channel))
            query, row, target = query + 1, row + 4 * channels, target + 4 * head_dim
