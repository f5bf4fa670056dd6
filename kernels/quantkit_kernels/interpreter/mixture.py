"""The kernels of a mixture of experts' operations, one function for each, of the operation's name.

`route`, `scale_choice`, `gather` and `combine` take one row, as those of `token_steps.py`; `assign` and `expert_linear`
share the work of a pass, as those of `shared_steps.py`. `rows/routing.py` and `linear/experts.py` compute.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.records import part_at, pass_at, row_at, row_count, rows_of, step_at
from quantkit_kernels.interpreter.threads import outcome, take_next
from quantkit_kernels.linear.experts import expert_tiles
from quantkit_kernels.linear.packed import ROW_TILES
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.rows import routing
from quantkit_kernels.simd import get_i32

PIECES = 8
"""Chunks of the chosen experts' row tiles for each thread: enough that threads finish together."""


@jit(entry=True)
def route(address, part, token):
    step, thread = step_at(address), part_at(part).thread
    how = routing.Routing(
        step.experts, step.top_k, step.scoring, step.bias, step.groups, step.chosen_groups, step.group_best,
        step.normalize, step.factor, step.tolerance,
    )  # fmt: skip
    routing.route(row_at(step.a, token, thread), row_at(step.out, token, thread), how)


@jit(entry=True)
def scale_choice(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    routing.scale_choice(a, step.weight, step.top_k, out)


@jit(entry=True)
def gather(address, part, row):
    step, thread = step_at(address), part_at(part).thread
    token = routing.token_of(step.b.address, step.experts, step.top_k, row)
    routing.gather(row_at(step.a, token, thread), row_at(step.out, row, thread), step.row_bytes)


@jit(entry=True)
def combine(address, part, token):
    step, now = step_at(address), part_at(part)
    places = routing.places_of(step.b.address, step.experts, step.top_k, pass_at(now.words).tokens, token)
    weights, out = row_at(step.c, token, now.thread) + 4 * step.top_k, row_at(step.out, token, now.thread)
    routing.combine(step.a.address, step.a.stride, places, weights, step.top_k, out, step.out_columns)


@jit(entry=True)
def assign(address, counter, part):
    """Sort the rows of a pass by expert: one piece."""
    step, now = step_at(address), part_at(part)
    _, first, last = take_next(counter, now, 0, 1, 1, 1)
    if first < last:
        routing.assign(step.a.address, step.a.stride, now.tokens, step.experts, step.top_k, step.out.address)
    return outcome(1, last - first)


@jit(entry=True)
def expert_linear(address, counter, part):
    """The products of all chosen experts, in row tiles.

    There are as many pieces as if all choices differed. How many experts were chosen is read with a piece in hand: when
    all are done, the table's memory may hold something else.
    """
    step, now = step_at(address), part_at(part)
    table, tiles = step.b.address, (step.out_columns + 7) >> 3
    pieces = min(row_count(step, now), step.experts) * tiles
    shape = Matrix(0, 0, 0, step.out_columns, step.in_columns)
    x, y = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    chunk = max(1, min(step.tiles, pieces // (PIECES * now.threads)) // ROW_TILES) * ROW_TILES
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, pieces, ROW_TILES, chunk)
        if first == last:
            return outcome(pieces, taken)
        end = min(last, get_i32(table) * tiles)
        expert_tiles(step.weight, table, step.experts, shape, x, y, first, end)
        taken += last - first
