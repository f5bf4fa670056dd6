"""Mixtures of experts: which experts a token goes to, the rows of each expert side by side, and their weighted sum.

`route` chooses `top_k` experts for each token. `assign` sorts all (token, choice) pairs of a pass by expert, once, so
that `linear/experts.py` reads each chosen expert once for all of its rows. What it finds is a table of i32:

    count                  experts that were chosen at all
    chosen [experts]       their numbers, in order; the rest means nothing
    begins [experts + 1]   the first row of each expert
    pairs [rows]           row -> token * top_k + choice
    places [rows]          token * top_k + choice -> row

`gather` copies a token's row to each of its rows; `combine` sums what the experts made of them, choice after choice, so
that a token's sum does not depend on the other tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.operations import MOST_EXPERTS
from quantkit_kernels.rows.functions import exp_negative, sigmoid
from quantkit_kernels.simd import (
    fma,
    get_f32,
    get_i32,
    load_line_f32,
    put_f32,
    put_i32,
    splat_wide,
    stack_f32,
    store,
)

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SOFTMAX_OF_CLOSE = range(4)
"""Places in `operations.SCORINGS` (a test compares)."""
NEVER = -3.0e38
"""Score of an expert that is not to be chosen."""


class Routing(NamedTuple):
    """How experts are chosen."""

    experts: int
    top_k: int
    scoring: int
    bias: int
    """Address of f32 `[experts]`, added to scores for the choice alone; 0 for none."""
    groups: int
    """Experts are chosen from the best `chosen_groups` of so many groups; 1: from all."""
    chosen_groups: int
    group_best: int
    """A group is as good as the sum of so many of its best experts."""
    normalize: int
    """1: the weights of a token sum to 1 before `factor`."""
    factor: float
    tolerance: float
    """With `SOFTMAX_OF_CLOSE`, how far from the best a score may be, relative to the larger of both."""


def table_bytes(experts: int, top_k: int) -> int:
    """Bytes of an assignment table, for each token of a pass."""
    return 4 * (2 * experts + 2) + 8 * top_k


@jit
def route(logits, out, routing):
    """The chosen experts of one token, best first, as f32 numbers; then their weights."""
    scores, choice = stack_f32(MOST_EXPERTS), stack_f32(MOST_EXPERTS)
    _score(logits, scores, routing)
    for expert in range(routing.experts):
        bias = get_f32(routing.bias + 4 * expert) if routing.bias else 0.0
        put_f32(choice + 4 * expert, get_f32(scores + 4 * expert) + bias)
    if routing.groups > 1:
        _drop_groups(choice, routing)
    weights, close = stack_f32(MOST_EXPERTS), routing.scoring == SOFTMAX_OF_CLOSE
    for place in range(routing.top_k):
        best = _best(choice, routing.experts)
        put_f32(choice + 4 * best, NEVER)
        put_f32(out + 4 * place, best)
        put_f32(weights + 4 * place, _close(scores, best, routing) if close else get_f32(scores + 4 * best))
    if routing.scoring == SOFTMAX_OF_CHOSEN:
        _softmax(weights, weights, routing.top_k)
    total = 0.0
    for place in range(routing.top_k):
        total += get_f32(weights + 4 * place)
    factor = routing.factor / total if routing.normalize else routing.factor
    for place in range(routing.top_k):
        put_f32(out + 4 * (routing.top_k + place), get_f32(weights + 4 * place) * factor)


@jit
def _close(scores, best, routing):
    """The softmax of the best score among those that are close to it; it is taken out of the scores."""
    exponentials, score, total = stack_f32(MOST_EXPERTS), get_f32(scores + 4 * best), 0.0
    for place in range(0, 4 * routing.experts, 64):
        store(exponentials + place, exp_negative(load_line_f32(scores + place) - splat_wide(score)))
    for place in range(0, 4 * routing.experts, 4):
        other = get_f32(scores + place)
        if not score - other > routing.tolerance * max(abs(other), score):
            total += get_f32(exponentials + place)
    put_f32(scores + 4 * best, NEVER)
    return 1.0 / total


@jit
def scale_choice(routing, numbers, top_k, out):
    """What `route` made, with each weight times the number that its expert has at `numbers`."""
    for place in range(top_k):
        expert = get_f32(routing + 4 * place)
        weight = get_f32(routing + 4 * (top_k + place)) * get_f32(numbers + 4 * int(expert))
        put_f32(out + 4 * place, expert)
        put_f32(out + 4 * (top_k + place), weight)


@jit
def _score(logits, scores, routing):
    if routing.scoring == SOFTMAX:
        _softmax(logits, scores, routing.experts)
    elif routing.scoring == SIGMOID:
        for place in range(0, 4 * routing.experts, 64):
            store(scores + place, sigmoid(load_line_f32(logits + place)))
    else:
        for place in range(0, 4 * routing.experts, 64):
            store(scores + place, load_line_f32(logits + place))


@jit
def _softmax(x, out, n):
    """Softmax of `n` numbers, summed one after the other; both hold whole lines, whose ends mean nothing."""
    peak = get_f32(x)
    for place in range(4, 4 * n, 4):
        peak = max(peak, get_f32(x + place))
    peaks, total = splat_wide(peak), 0.0
    for place in range(0, 4 * n, 64):
        store(out + place, exp_negative(load_line_f32(x + place) - peaks))
    for place in range(0, 4 * n, 4):
        total += get_f32(out + place)
    for place in range(0, 4 * n, 4):
        put_f32(out + place, get_f32(out + place) / total)


@jit
def _best(scores, n):
    """The first of the greatest scores."""
    best = 0
    for number in range(1, n):
        if get_f32(scores + 4 * number) > get_f32(scores + 4 * best):
            best = number
    return best


@jit
def _drop_groups(choice, routing):
    """Lower the scores of all experts outside of the best groups."""
    size = routing.experts // routing.groups
    totals = stack_f32(MOST_EXPERTS)
    for group in range(routing.groups):
        put_f32(totals + 4 * group, _sum_of_best(choice + 4 * size * group, size, routing.group_best))
    for _ in range(routing.groups - routing.chosen_groups):
        worst = 0
        for group in range(1, routing.groups):
            # The later one of equals goes.
            if get_f32(totals + 4 * group) <= get_f32(totals + 4 * worst):
                worst = group
        put_f32(totals + 4 * worst, -NEVER)
        for expert in range(size * worst, size * (worst + 1)):
            put_f32(choice + 4 * expert, NEVER)


@jit
def _sum_of_best(scores, n, count):
    """Sum of the `count` greatest scores, 1 or 2."""
    first, second = NEVER, NEVER
    for number in range(n):
        score = get_f32(scores + 4 * number)
        if score > first:
            first, second = score, first
        elif score > second:
            second = score
    return first + second if count > 1 else first


@jit
def begins_of(table, experts):
    """Address of the first row of each expert."""
    return table + 4 * (experts + 1)


@jit
def _pairs(table, experts):
    return table + 4 * (2 * experts + 2)


@jit
def assign(routing, stride, tokens, experts, top_k, table):
    """Sort the choices of all tokens, whose `route` rows begin at `routing`, into an assignment table."""
    begins, rows = begins_of(table, experts), tokens * top_k
    pairs = _pairs(table, experts)
    places = pairs + 4 * rows
    for expert in range(experts + 1):
        put_i32(begins + 4 * expert, 0)
    for pair in range(rows):
        counted = begins + 4 * _expert_of(routing, stride, pair, top_k) + 4
        put_i32(counted, get_i32(counted) + 1)
    chosen = 0
    for expert in range(experts):
        count = get_i32(begins + 4 * expert + 4)
        if count:
            put_i32(table + 4 + 4 * chosen, expert)
            chosen += 1
        put_i32(begins + 4 * expert + 4, get_i32(begins + 4 * expert) + count)
    put_i32(table, chosen)
    for pair in range(rows):
        # Each expert's begin moves on as its rows come, and is set back below.
        place = begins + 4 * _expert_of(routing, stride, pair, top_k)
        row = get_i32(place)
        put_i32(place, row + 1)
        put_i32(pairs + 4 * row, pair)
        put_i32(places + 4 * pair, row)
    for expert in range(experts, 0, -1):
        put_i32(begins + 4 * expert, get_i32(begins + 4 * expert - 4))
    put_i32(begins, 0)


@jit
def _expert_of(routing, stride, pair, top_k):
    return int(get_f32(routing + pair // top_k * stride + 4 * (pair % top_k)))


@jit
def token_of(table, experts, top_k, row):
    """The token that a row is of."""
    return get_i32(_pairs(table, experts) + 4 * row) // top_k


@jit
def gather(x, out, size):
    """Copy a row of `size` bytes, a multiple of 4."""
    whole = size & ~63
    for place in range(0, whole, 64):
        store(out + place, load_line_f32(x + place))
    for place in range(whole, size, 4):
        put_i32(out + place, get_i32(x + place))


@jit
def combine(y, stride, places, weights, top_k, out, n):
    """`out = sum(weight * row)` over a token's rows of `y`, which `places` says, choice after choice."""
    for place in range(0, 4 * n, 64):
        total = splat_wide(0.0)
        for choice in range(top_k):
            row = y + get_i32(places + 4 * choice) * stride
            total = fma(load_line_f32(row + place), splat_wide(get_f32(weights + 4 * choice)), total)
        store(out + place, total)


@jit
def places_of(table, experts, top_k, tokens, token):
    """Address of the rows of a token."""
    return _pairs(table, experts) + 4 * top_k * (tokens + token)
