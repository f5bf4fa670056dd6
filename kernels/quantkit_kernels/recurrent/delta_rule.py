"""The gated delta rule: each head keeps a matrix, which decays and is corrected under a token's key.

For every head and token, with a state `S` of `[key_dim, value_dim]`, a query and a key of length 1, a decay
`exp(-exp(A_log) softplus(a + dt_bias))` and a rate `beta = factor sigmoid(b)`:

    S = decay S
    d = beta (v - k S)
    S = S + k^T d
    y = q S / sqrt(key_dim)

Written so, every token reads and writes all of `S`. Here `S` is brought up to date only after every `BLOCK` tokens of a
sequence; the keys and the `d`s of a block, its deltas, wait beside it. `k S` and `q S` are products with the matrix as
it was when the block began, and some multiples of the block's deltas. So a token alone writes no matrix, and many
tokens meet it as in a matrix product. Blocks are counted from the beginning of a sequence, and each number has one
order of arithmetic, so the bits do not depend on how the sequence is cut into chunks. A unit is a head.

Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024 (arXiv:2412.06464).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.operations import BLOCK, LINE, STRIP
from quantkit_kernels.operands import Rows, from_token
from quantkit_kernels.rows.functions import exp_negative, sigmoid, softplus
from quantkit_kernels.simd import (
    TILES,
    fma,
    fma_outer,
    get_f32,
    load_grid,
    load_line_f32,
    load_wide_f32,
    load_wide_partial_f32,
    prefetch,
    put_f32,
    splat_wide,
    stack_f32,
    store,
    store_grid,
    sum_lanes,
    zeros_wide,
)

STEP = LINE * TILES
"""Columns that a register tile holds."""
AT_ONCE = 4 * TILES
"""Tokens, or rows of a matrix, that a register tile holds."""
EPS = 1e-6
"""Added to the square of the length of a query or a key."""
AHEAD = 4096
"""Bytes of a matrix that are prefetched where a token alone reads it."""

MATRIX, WAITING = BLOCK, BLOCK + 1
"""In the first line of a head's state, behind the decay of each delta since its token: the decay of the matrix since
the block began, and the number of tokens that wait."""
FOR_QUERY, TABLE_ROW = 4 * LINE, 8 * LINE
"""In bytes. A block's table has a row for each token: what the deltas, and then the matrix, are multiplied by in `k S`,
and behind it in `y`."""
TABLE, GATES, PRODUCTS = BLOCK * 2 * LINE, 2 * LINE, 2 * BLOCK * STEP
"""Numbers of a block's table, of its decays and rates, and of its keys' and queries' products with some columns."""


class DeltaRule(NamedTuple):
    """A layer: its sizes, and what it has learned."""

    key_heads: int
    value_heads: int
    """A multiple of `key_heads`; neighbours share a query and a key."""
    key_dim: int
    value_dim: int
    factor: float
    a_log: int
    """Addresses of f32 `[value_heads]`."""
    dt_bias: int


class Head(NamedTuple):
    """A head: its columns of a chunk's rows, and the addresses of its state. The table of operations has its size."""

    q: Rows
    k: Rows
    v: Rows
    out: Rows
    key_dim: int
    value_dim: int
    decays: int
    keys: int
    """Those of a block, of length 1."""
    deltas: int
    matrix: int
    """A row of strips, each `[key_dim, STRIP]`."""
    key_bytes: int
    """From one key to the next."""
    delta_bytes: int


@jit
def delta_rule(layer, x, a, b, out, state, count, first, last):
    """Units `first` to `last` of a layer, for `count` consecutive tokens of a sequence.

    Rows of `x` hold the queries of all heads, then the keys, then the values; those of `a` and `b` one number for each
    value head.
    """
    gates, table = stack_f32(GATES), stack_f32(TABLE)
    for unit in range(first, last):
        head = _head(layer, x, out, state, unit)
        token = 0
        while token < count:
            begin = np.int64(get_f32(head.decays + 4 * WAITING))
            end = min(BLOCK, begin + count - token)
            _gates(layer, from_token(a, token), from_token(b, token), unit, end - begin, gates)
            for place in range(begin, end):
                _enter(head, token + place - begin, place, gates + 4 * (place - begin), table + TABLE_ROW * place)
            _pass_columns(head, token, begin, end, table)
            put_f32(head.decays + 4 * WAITING, end % BLOCK)
            token += end - begin


@jit
def _head(layer, x, out, state, unit):
    key = 4 * layer.key_dim * (unit // (layer.value_heads // layer.key_heads))
    value, keys = 4 * layer.value_dim * unit, 4 * layer.key_dim * layer.key_heads
    key_bytes = (layer.key_dim + LINE - 1) // LINE * LINE * 4
    delta_bytes = (layer.value_dim + STRIP - 1) // STRIP * STRIP * 4
    decays = state + unit * (4 * LINE + BLOCK * (key_bytes + delta_bytes) + layer.key_dim * delta_bytes)
    deltas = decays + 4 * LINE + BLOCK * key_bytes
    return Head(
        Rows(x.address + key, x.stride),
        Rows(x.address + keys + key, x.stride),
        Rows(x.address + 2 * keys + value, x.stride),
        Rows(out.address + value, out.stride),
        layer.key_dim,
        layer.value_dim,
        decays,
        decays + 4 * LINE,
        deltas,
        deltas + BLOCK * delta_bytes,
        key_bytes,
        delta_bytes,
    )


@jit
def _gates(layer, a, b, unit, count, gates):
    """A line of decays and a line of rates, of a head's next `count` tokens."""
    rates = gates + 4 * LINE
    store(gates, splat_wide(0.0))
    store(rates, splat_wide(0.0))
    for token in range(count):
        put_f32(gates + 4 * token, get_f32(from_token(a, token).address + 4 * unit))
        put_f32(rates + 4 * token, get_f32(from_token(b, token).address + 4 * unit))
    speed = np.float32(-math.exp(get_f32(layer.a_log + 4 * unit)))
    step = softplus(load_line_f32(gates) + splat_wide(get_f32(layer.dt_bias + 4 * unit)))
    store(gates, exp_negative(step * splat_wide(speed)))
    store(rates, sigmoid(load_line_f32(rates)) * splat_wide(layer.factor))


@jit
def _enter(head, token, place, gates, factors):
    """Put a token's key and value, times its rate, at its place in the block; writes its row of the table."""
    q, k, v = from_token(head.q, token), from_token(head.k, token), from_token(head.v, token)
    # The rows of the next block: they are too far apart for the processor to see them coming.
    _prefetch(from_token(q, BLOCK).address, head.key_dim)
    _prefetch(from_token(k, BLOCK).address, head.key_dim)
    _prefetch(from_token(v, BLOCK).address, head.value_dim)
    key, rate = head.keys + place * head.key_bytes, get_f32(gates + 4 * LINE)
    _multiple(k.address, head.key_dim, _inverse_length(k.address, head.key_dim), key)
    _multiple(v.address, head.value_dim, rate, head.deltas + place * head.delta_bytes)
    if place == 0:
        store(head.decays, splat_wide(0.0))
        put_f32(head.decays + 4 * MATRIX, 1.0)
    decays = load_line_f32(head.decays) * splat_wide(get_f32(gates))
    store(head.decays, decays)
    for earlier in range(place):
        _dot_products(head, head.keys + earlier * head.key_bytes, key, q.address, factors + 4 * earlier)
    _dot_products(head, key, key, q.address, factors + 4 * place)
    put_f32(factors + 4 * MATRIX, 1.0)
    put_f32(factors + FOR_QUERY + 4 * MATRIX, 1.0)
    put_f32(head.decays + 4 * place, 1.0)
    length = _inverse_length(q.address, head.key_dim) / np.float32(math.sqrt(head.key_dim))
    store(factors, load_line_f32(factors) * (decays * splat_wide(-rate)))
    for_query = load_line_f32(factors + FOR_QUERY) * splat_wide(length)
    store(factors + FOR_QUERY, for_query * load_line_f32(head.decays))


@jit
def _prefetch(x, size):
    for place in range(0, 4 * size, 4 * LINE):
        prefetch(x + place)


@jit
def _inverse_length(x, size):
    total = zeros_wide(1, 1)
    for column in range(0, size, LINE):
        part = load_wide_partial_f32(x + 4 * column, size - column)
        total = fma(part, part, total)
    return np.float32(1.0 / math.sqrt(sum_lanes(total) + EPS))


@jit
def _multiple(x, size, factor, out):
    """`size` numbers times `factor`, and zeros behind them up to a whole line."""
    for column in range(0, size, LINE):
        store(out + 4 * column, load_wide_partial_f32(x + 4 * column, size - column) * splat_wide(factor))


@jit
def _dot_products(head, earlier, key, q, factors):
    """The products of a key of the block with a token's key and with its query."""
    with_key, with_query = zeros_wide(1, 1), zeros_wide(1, 1)
    for column in range(0, head.key_dim, LINE):
        part = load_line_f32(earlier + 4 * column)
        with_key = fma(part, load_line_f32(key + 4 * column), with_key)
        with_query = fma(part, load_wide_partial_f32(q + 4 * column, head.key_dim - column), with_query)
    put_f32(factors, sum_lanes(with_key))
    put_f32(factors + FOR_QUERY, sum_lanes(with_query))


@jit
def _pass_columns(head, token, begin, end, table):
    """All columns of a head for its new tokens, those at places `begin` to `end` of the block."""
    products = stack_f32(PRODUCTS)
    q, keys = from_token(head.q, token), Rows(head.keys + begin * head.key_bytes, head.key_bytes)
    for column in range(0, head.delta_bytes >> 2, STEP):
        matrix = head.matrix + 4 * (column // STRIP * STRIP * head.key_dim + column % STRIP)
        _multiply(keys, q, end - begin, matrix, head.key_dim, products)
        for place in range(begin, end):
            number = place - begin
            out = from_token(head.out, token + number).address + 4 * column
            _answer(head, column, place, products + 4 * STEP * number, table + TABLE_ROW * place, out)
        if end == BLOCK:
            _bring_up_to_date(head, matrix, head.deltas + 4 * column)


@jit
def _multiply(keys, q, count, matrix, key_dim, products):
    """Products of keys and of queries with `STEP` columns of a matrix, row after row."""
    together = count // AT_ONCE * AT_ONCE
    for token in range(0, together, AT_ONCE):
        out = products + 4 * STEP * token
        _multiply_tile(from_token(keys, token), matrix, key_dim, out)
        _multiply_tile(from_token(q, token), matrix, key_dim, out + 4 * STEP * BLOCK)
    for token in range(together, count):
        pair, place, key = zeros_wide(TILES, 2), matrix, from_token(keys, token).address
        to_query = from_token(q, token).address - key
        for _ in range(key_dim):
            prefetch(place + AHEAD)
            pair = fma_outer(load_wide_f32(place, pair), key, to_query, pair)
            key += 4
            place += 4 * STRIP
        store_grid(products + 4 * STEP * token, 4 * LINE, 4 * STEP * BLOCK, pair)


@jit
def _multiply_tile(x, matrix, key_dim, out):
    """As `_multiply`, for `AT_ONCE` rows."""
    acc, source = zeros_wide(TILES, AT_ONCE), x.address
    for _ in range(key_dim):
        acc = fma_outer(load_wide_f32(matrix, acc), source, x.stride, acc)
        source += 4
        matrix += 4 * STRIP
    store_grid(out, 4 * LINE, 4 * STEP, acc)


@jit
def _answer(head, column, place, products, factors, out):
    """A token's delta and result in `STEP` columns, from its products with the matrix and from the deltas before."""
    like = zeros_wide(TILES, 1)
    for_query, other = factors + FOR_QUERY, head.deltas + 4 * column
    own = other + place * head.delta_bytes
    delta = fma(load_wide_f32(products, like), splat_wide(get_f32(factors + 4 * MATRIX)), load_wide_f32(own, like))
    result = load_wide_f32(products + 4 * STEP * BLOCK, like) * splat_wide(get_f32(for_query + 4 * MATRIX))
    for earlier in range(place):
        seen = load_wide_f32(other, like)
        delta = fma(seen, splat_wide(get_f32(factors + 4 * earlier)), delta)
        result = fma(seen, splat_wide(get_f32(for_query + 4 * earlier)), result)
        other += head.delta_bytes
    store_grid(own, 4 * LINE, 0, delta)
    result = fma(delta, splat_wide(get_f32(for_query + 4 * place)), result)
    left = head.value_dim - column
    if left >= STEP:
        store_grid(out, 4 * LINE, 0, result)
        return
    # What follows belongs to the next head.
    store_grid(products, 4 * LINE, 0, result)
    for number in range(0, 4 * left, 4):
        put_f32(out + number, get_f32(products + number))


@jit
def _bring_up_to_date(head, matrix, deltas):
    """Let `STEP` columns of a matrix decay, and add the block's keys times its deltas."""
    for place in range(BLOCK):
        delta = deltas + place * head.delta_bytes
        decayed = load_wide_f32(delta, zeros_wide(TILES, 1)) * splat_wide(get_f32(head.decays + 4 * place))
        store_grid(delta, 4 * LINE, 0, decayed)
    together = head.key_dim // AT_ONCE * AT_ONCE
    for row in range(0, together, AT_ONCE):
        _add_products(head, row, matrix, deltas, zeros_wide(TILES, AT_ONCE))
    for row in range(together, head.key_dim):
        _add_products(head, row, matrix, deltas, zeros_wide(TILES, 1))


@jit
def _add_products(head, row, matrix, delta, like):
    """As `_bring_up_to_date`, for as many rows as `like` has tokens."""
    place, key = matrix + 4 * STRIP * row, head.keys + 4 * row
    acc = load_grid(place, 4 * LINE, 4 * STRIP, like) * splat_wide(get_f32(head.decays + 4 * MATRIX))
    for _ in range(BLOCK):
        acc = fma_outer(load_wide_f32(delta, acc), key, 4, acc)
        delta += head.delta_bytes
        key += head.key_bytes
    store_grid(place, 4 * LINE, 4 * STRIP, acc)
