"""Mamba-2's layer, state-space duality: each head keeps a matrix, which decays and takes in an outer product a token.

For every head and token, with a state `h` of `[head_dim, size]`, a step `t = clamp(softplus(dt + dt_bias))` and a decay
`exp(-exp(A_log) t)`:

    h = decay h + (t x) B^T
    y = h C + skip x

Heads of a group share `B` and `C`. Tokens pass one after the other, in one fixed order of arithmetic, so the bits do
not depend on how a sequence is cut into chunks. Rows of a state need no other rows: a unit is 32 of them, which stay in
the nearest cache while all tokens of a chunk pass. In memory a unit's rows stand side by side, one column of the state
after the other, so that a column is two registers, `B` and `C` are single numbers, and no register is summed up.

Dao and Gu, "Transformers are SSMs", 2024 (arXiv:2405.21060).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.operations import STATE_ROWS
from quantkit_kernels.operands import Rows
from quantkit_kernels.rows.functions import exp_negative, softplus
from quantkit_kernels.simd import (
    clamp,
    fma,
    get_f32,
    load_line_f32,
    load_wide_f32,
    load_wide_partial_f32,
    put_f32,
    splat_wide,
    stack_f32,
    store,
    store_grid,
    zeros_wide,
)

LINE = 16
"""Rows of a state in one register."""
UNIT = STATE_ROWS
"""Rows of a unit, two registers; the last one of a head may have fewer."""


class Ssd(NamedTuple):
    """A layer: its sizes, and what it has learned."""

    heads: int
    head_dim: int
    groups: int
    size: int
    """Columns of a head's state."""
    a_log: int
    """Addresses of f32 `[heads]`."""
    dt_bias: int
    skip: int
    dt_min: float
    dt_max: float


class Token(NamedTuple):
    """What a token brings to all rows of a head."""

    step: float
    decay: float
    skip: float
    b: int
    """Addresses of f32 `[size]`."""
    c: int


@jit
def ssd(layer, x, dt, out, state, tokens, first, last):
    """Units `first` to `last` of consecutive tokens of one sequence.

    Parameters
    ----------
    layer : Ssd
    x, dt, out : Rows
        f32 rows: the columns of all heads, then `B` of all groups, then `C`; a number for each head; the heads'
        outputs.
    state : int
        Address of f32 `[units, size, UNIT]`, which is advanced.
    tokens, first, last : int
    """
    units = (layer.head_dim + UNIT - 1) // UNIT
    for unit in range(first, last):
        memory = state + 4 * UNIT * layer.size * unit
        _unit(layer, x, dt, out, memory, tokens, unit // units, unit % units * UNIT)


@jit
def _unit(layer, x, dt, out, memory, count, head, row):
    """The rows of a head from `row` on: in steps of `LINE` tokens, whose step sizes are computed together."""
    steps, decays = stack_f32(LINE), stack_f32(LINE)
    rate, skip = np.float32(-math.exp(get_f32(layer.a_log + 4 * head))), get_f32(layer.skip + 4 * head)
    column, rows = head * layer.head_dim + row, layer.head_dim - row
    b_column = layer.heads * layer.head_dim + layer.size * (head // (layer.heads // layer.groups))
    c_column = b_column + layer.groups * layer.size
    for start in range(0, count, LINE):
        tokens = min(LINE, count - start)
        _steps(layer, Rows(dt.address + start * dt.stride + 4 * head, dt.stride), tokens, head, rate, steps, decays)
        for number in range(tokens):
            values = x.address + (start + number) * x.stride
            token = Token(
                get_f32(steps + 4 * number),
                get_f32(decays + 4 * number),
                skip,
                values + 4 * b_column,
                values + 4 * c_column,
            )
            place = out.address + (start + number) * out.stride + 4 * column
            if rows >= UNIT:
                _whole(memory, layer.size, values + 4 * column, place, token)
            else:
                _ragged(memory, layer.size, values + 4 * column, place, rows, token)


@jit
def _steps(layer, dt, tokens, head, rate, steps, decays):
    """Step sizes and decays of a head, for up to `LINE` tokens."""
    store(steps, splat_wide(0.0))
    for token in range(tokens):
        put_f32(steps + 4 * token, get_f32(dt.address + token * dt.stride))
    raw = load_line_f32(steps) + splat_wide(get_f32(layer.dt_bias + 4 * head))
    step = clamp(softplus(raw), splat_wide(layer.dt_min), splat_wide(layer.dt_max))
    store(steps, step)
    store(decays, exp_negative(step * splat_wide(rate)))


@jit
def _whole(memory, size, x, out, token):
    """`UNIT` rows."""
    store_grid(out, 4 * LINE, 0, _advanced(memory, 4 * UNIT, size, load_wide_f32(x, zeros_wide(2, 1)), token))


@jit
def _ragged(memory, size, x, out, rows, token):
    """The last rows of a head: line after line, the last one in part."""
    for row in range(0, rows, LINE):
        count = min(LINE, rows - row)
        line = memory + 4 * row * size
        y = _advanced(line, 4 * LINE, size, load_wide_partial_f32(x + 4 * row, count), token)
        if count == LINE:
            store(out + 4 * row, y)
        else:
            rest = stack_f32(LINE)
            store(rest, y)
            for place in range(0, 4 * count, 4):
                put_f32(out + 4 * row + place, get_f32(rest + place))


@jit
def _advanced(memory, stride, size, x, token):
    """Advance rows of a state, whose columns are `stride` bytes apart, by one token; returns their outputs."""
    scaled, keep = x * splat_wide(token.step), splat_wide(token.decay)
    y = x * splat_wide(token.skip)
    for column in range(size):
        place = memory + stride * column
        h = fma(scaled, splat_wide(get_f32(token.b + 4 * column)), load_wide_f32(place, x) * keep)
        store_grid(place, 4 * LINE, 0, h)
        y = fma(h, splat_wide(get_f32(token.c + 4 * column)), y)
    return y
