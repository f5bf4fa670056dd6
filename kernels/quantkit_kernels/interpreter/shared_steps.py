"""The kernels of operations whose work threads share in other pieces than tokens: `linear`, `attention`, and those that
choose the next tokens of sequences.

One function for each, of the operation's name. `dispatch.py` calls it, by the address in the step, for a whole pass; it
takes pieces (`threads.take_next`) until there are none, and returns how many there were and how many it did, as
`outcome` packs them. Those of `mixture.py` are called in the same way.
"""

from __future__ import annotations

from quantkit_kernels.attention.operands import Heads
from quantkit_kernels.attention.sharing import attend, pieces_of
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.records import CHUNK_BYTES, chunk_at, layer_of, part_at, pass_at, row_count, step_at
from quantkit_kernels.interpreter.threads import is_current, outcome, take_next
from quantkit_kernels.linear import product
from quantkit_kernels.linear.packed import ROW_TILES
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.rows.choice import block_maximum, blocks_of, choice_at
from quantkit_kernels.simd import call, put_f32

MANY = 8
"""Tokens from which on a chunk of a matrix product takes longer than its weights take to arrive."""
BLOCKS_AT_ONCE = 64
"""Blocks of logits that a thread takes at once."""


@jit(entry=True)
def linear(address, counter, part):
    """A matrix product, in row tiles."""
    step, now = step_at(address), part_at(part)
    tokens = row_count(step, now)
    tiles = (step.out_columns + 7) >> 3 if tokens else 0
    # Many tokens make a chunk long work: threads are to finish together.
    unit = ROW_TILES if tokens > 1 else 1
    chunk = max(1, step.tiles * MANY // max(tokens, MANY) // unit) * unit
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, tiles, unit, chunk)
        if first == last:
            return outcome(tiles, taken)
        matrix = Matrix(step.weight, step.row_scales, step.bias, step.out_columns, step.in_columns)
        x, y = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
        product.multiply(step.product, matrix, x, y, tokens, first, last)
        taken += last - first


@jit(entry=True)
def attention(address, counter, part):
    """Attention of the whole batch over one layer, in pairs of a span and a KV head, or in segments of them."""
    step, now = step_at(address), part_at(part)
    state = pass_at(now.words)
    layer, slopes = layer_of(step, state), step.constant
    heads = Heads(layer, step.heads_per_kv, step.scale, step.softcap, step.sinks, slopes, step.window, step.chunked)
    spans = state.span_table
    pieces = pieces_of(heads, now.tokens, now.spans, spans, now.threads, state.partials)
    if not is_current(now.shared, now.generation):  # or `pieces` may be those of a later pass
        return outcome(0, 0)
    q, out = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    scratch = state.scratch + now.thread * state.scratch_bytes
    return outcome(pieces.count, attend(heads, q, out, spans, pieces, counter, now, scratch))


@jit(entry=True)
def block_maxima(address, counter, part):
    """The maximum of each block of logits, if tokens are chosen; a thread has just made most of its own share."""
    step, now = step_at(address), part_at(part)
    choices = pass_at(now.words).choices
    if not choices or not is_current(now.shared, now.generation):
        return outcome(0, 0)
    columns, blocks = step.in_columns, blocks_of(step.in_columns)
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, blocks * now.wanted, 1, BLOCKS_AT_ONCE)
        if first == last:
            return outcome(blocks * now.wanted, taken)
        for piece in range(first, last):
            row, block = piece // blocks, piece % blocks
            logits, maxima = step.a.address + row * step.a.stride, step.out.address + row * step.out.stride
            put_f32(maxima + 4 * block, block_maximum(logits, columns, block))
        taken += last - first


@jit(entry=True)
def choose(address, counter, part):
    """The next token of each sequence that has a choice, by the logits of its last one."""
    step, now = step_at(address), part_at(part)
    state = pass_at(now.words)
    choices, table = state.choices, state.chunk_table
    if not choices or not is_current(now.shared, now.generation):
        return outcome(0, 0)
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, now.chunks, 1, 1)
        if first == last:
            return outcome(now.chunks, taken)
        row = -1
        for number in range(last):
            row += chunk_at(table + CHUNK_BYTES * number).wanted
        choice = chunk_at(table + CHUNK_BYTES * first).choice
        if choice:
            asked = choice_at(choice)
            asked.row, asked.maxima = step.a.address + row * step.a.stride, step.b.address + row * step.b.stride
            asked.token = call(state.choose, (choice,))
        taken += last - first
