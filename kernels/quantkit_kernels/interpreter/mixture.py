"""The steps of a mixture of experts: `dispatch.py` calls them, `rows/routing.py` and `linear/experts.py` compute."""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.operations import Opcode
from quantkit_kernels.interpreter.records import row_at, row_count, step_at
from quantkit_kernels.interpreter.threads import take_next
from quantkit_kernels.linear.experts import expert_tiles
from quantkit_kernels.linear.packed import ROW_TILES
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.rows.routing import Routing, assign, combine, gather, places_of, route, token_of
from quantkit_kernels.simd import get_i32

PIECES = 8
"""Chunks of the chosen experts' row tiles for each thread: enough that threads finish together."""


@jit
def mixture_row(step, state, thread, row):
    """One row of a step that treats every row by itself."""
    out, table = row_at(step.out, row, thread), step.b.address
    if step.opcode == Opcode.ROUTE:
        routing = Routing(
            step.experts, step.top_k, step.scoring, step.bias, step.groups, step.chosen_groups, step.group_best,
            step.normalize, step.factor, step.tolerance,
        )  # fmt: skip
        route(row_at(step.a, row, thread), out, routing)
    elif step.opcode == Opcode.GATHER:
        token = token_of(table, step.experts, step.top_k, row)
        gather(row_at(step.a, token, thread), out, step.row_bytes)
    elif step.opcode == Opcode.COMBINE:
        places = places_of(table, step.experts, step.top_k, state.tokens, row)
        weights = row_at(step.c, row, thread) + 4 * step.top_k
        combine(step.a.address, step.a.stride, places, weights, step.top_k, out, step.out_columns)


@jit
def assign_all(address, counter, now):
    """Sort the rows of a pass by expert: one piece; returns how many there are, and how many this thread did."""
    step = step_at(address)
    _, first, last = take_next(counter, now, 0, 1, 1, 1)
    if first < last:
        assign(step.a.address, step.a.stride, now.tokens, step.experts, step.top_k, step.out.address)
    return 1, last - first


@jit
def expert_products(address, counter, now):
    """The products of all chosen experts; returns their pieces, and how many this thread did.

    There are as many pieces as if all choices differed. How many experts were chosen is read with a piece in hand: when
    all are done, the table's memory may hold something else.
    """
    step = step_at(address)
    table, tiles = step.b.address, (step.out_columns + 7) >> 3
    pieces = min(row_count(step, now), step.experts) * tiles
    shape = Matrix(0, 0, 0, step.out_columns, step.in_columns)
    x, y = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    chunk = max(1, min(step.tiles, pieces // (PIECES * now.threads)) // ROW_TILES) * ROW_TILES
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, pieces, ROW_TILES, chunk)
        if first == last:
            return pieces, taken
        expert_tiles(step.weight, table, step.experts, shape, x, y, first, min(last, get_i32(table) * tiles))
        taken += last - first
