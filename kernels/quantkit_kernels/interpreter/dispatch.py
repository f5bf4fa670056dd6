"""One compiled function that runs a whole program, for every architecture.

All threads of a pool run it over the same steps (`layout.py`), each as far as it comes: the work of a step is handed
out in pieces, those of a thread's own share first (`threads.py`). Fused token steps are taken token after token, so
that a row stays in the nearest cache. A barrier stands only where a step says so, and waits for pieces, not for
threads; a waiting thread prefetches the next weights. It calls the kernels of `operations.py` and computes nothing
itself; it neither allocates nor calls Python. `participate` is the only entry.

A thread that the system had put aside may go on in a pass that is over. It finds no work there: how much there is, it
has read before it made sure that the pass still runs, and the rest it reads with a piece in hand, without which no pass
ends.

Asked for times, each thread notes for each step when it arrived and when it began, the barrier behind it; and last,
when it arrived at the end of the pass. Fused steps count as the first of them.
"""

from __future__ import annotations

from quantkit_kernels.attention.operands import Heads
from quantkit_kernels.attention.sharing import attend, pieces_of
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.mixture import assign_all, expert_products
from quantkit_kernels.interpreter.operations import Opcode
from quantkit_kernels.interpreter.records import STEP_BYTES, layer_of, pass_at, row_count, step_at
from quantkit_kernels.interpreter.recurrent import advance_states
from quantkit_kernels.interpreter.threads import (
    Pass,
    await_done,
    await_pass,
    begin_pass,
    count_done,
    end_pass,
    is_current,
    tag_of,
    take_next,
)
from quantkit_kernels.interpreter.token_steps import token_step
from quantkit_kernels.linear.packed import ROW_TILES
from quantkit_kernels.linear.product import linear
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.simd import nanoseconds, put_i64

MANY = 8
"""Tokens from which on a chunk of a matrix product takes longer than its weights take to arrive."""


@jit(entry=True)
def participate(thread, shared, words):
    """Take part in passes as one thread of a pool.

    Thread 0 wakes the others, runs one pass, and returns when all have finished it. Every other thread serves pass
    after pass until the pool stops.

    Parameters
    ----------
    thread : int
        Number of this thread, 0 for the caller.
    shared : int
        Address of the pool's memory, see `threads.Shared`.
    words : int
        Address of a `layout.PASS`, read when a pass begins.
    """
    generation = 0
    if thread == 0:
        generation = begin_pass(shared, pass_at(words).threads)
        _run(thread, shared, words, generation)
        end_pass(shared)
        return
    while True:
        generation = await_pass(shared, thread, generation)
        if generation < 0:
            return
        _run(thread, shared, words, generation)


@jit
def _run(thread, shared, words, generation):
    state = pass_at(words)
    steps, threads, times = state.step_count, state.threads, state.times
    tag, stride = tag_of(generation), 8 * (steps + 1)
    now = Pass(thread, threads, tag, stride, state.tokens, state.wanted, state.spans, state.chunks)
    if not is_current(shared, generation):
        return
    address, counter = state.steps, state.counters
    end, done = address + STEP_BYTES * steps, counter + now.counter_stride * threads
    finished = done + 8 * steps
    if times:
        times += 16 * (steps + 1) * thread
    times = _note(times, 1)
    total = mine = 0
    section = done
    while address < end:
        step = step_at(address)
        if step.barrier:
            if mine:
                count_done(section, now.tag, mine)
            prefetch_bytes = step.prefetch_bytes // threads
            await_done(section, now.tag, total, step.prefetch + prefetch_bytes * thread, prefetch_bytes)
            if not is_current(shared, generation):
                return
            total = mine = 0
            section = done
        fused = step.fused
        times = _note(times, 1)
        if step.opcode == Opcode.LINEAR:
            pieces, taken = _linear(address, counter, now)
        elif step.opcode == Opcode.ATTENTION:
            pieces, taken = _attention(address, counter, shared, words, generation, now)
        elif step.opcode == Opcode.EXPERT_LINEAR:
            pieces, taken = expert_products(address, counter, now)
        elif step.opcode == Opcode.ASSIGN:
            pieces, taken = assign_all(address, counter, now)
        elif step.units:
            pieces, taken = advance_states(address, counter, words, now)
        else:
            pieces, taken = _token_steps(address, fused, counter, words, now)
        total += pieces
        mine += taken
        times = _note(times, 2 * fused - 1)
        address += STEP_BYTES * fused
        counter += 8 * fused
        done += 8 * fused
    if mine:
        count_done(section, now.tag, mine)
    if times:
        count_done(finished, now.tag, 1)
    if thread == 0:
        await_done(section, now.tag, total, 0, 0)
        if times:
            await_done(finished, now.tag, threads, 0, 0)


@jit
def _note(times, count):
    """Write the time in the next `count` places, if times are asked for; returns where the next one goes."""
    if not times:
        return 0
    now = nanoseconds()
    for place in range(times, times + 8 * count, 8):
        put_i64(place, now)
    return times + 8 * count


@jit
def _token_steps(address, fused, counter, words, now):
    """Fused token steps; returns their pieces, tokens, and how many this thread did."""
    count = row_count(step_at(address), now)
    # Whole blocks of 8 where there are enough, so that threads share few cache lines.
    unit = 8 if count >= 8 * now.threads else 1
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, count, unit, unit)
        if first == last:
            return count, taken
        for token in range(first, last):
            for inside in range(address, address + STEP_BYTES * fused, STEP_BYTES):
                token_step(inside, words, now.thread, token)
        taken += last - first


@jit
def _linear(address, counter, now):
    """A matrix product; returns its pieces, row tiles, and how many this thread did."""
    step = step_at(address)
    tokens = row_count(step, now)
    tiles = (step.out_columns + 7) >> 3 if tokens else 0
    # Many tokens make a chunk long work: threads are to finish together.
    unit = ROW_TILES if tokens > 1 else 1
    chunk = max(1, step.tiles * MANY // max(tokens, MANY) // unit) * unit
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, tiles, unit, chunk)
        if first == last:
            return tiles, taken
        _row_tiles(address, first, last, tokens)
        taken += last - first


@jit
def _row_tiles(address, first, last, tokens):
    """Row tiles `first` to `last` of a matrix product, for all tokens."""
    step = step_at(address)
    matrix = Matrix(step.weight, step.row_scales, step.bias, step.out_columns, step.in_columns)
    x, y = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    linear(matrix, step.kind, x, y, tokens, first, last)


@jit
def _attention(address, counter, shared, words, generation, now):
    """Attention of the whole batch over one layer; returns its pieces, and how many this thread did."""
    step, state = step_at(address), pass_at(words)
    layer = layer_of(step, state)
    heads = Heads(layer, step.heads_per_kv, step.scale, step.softcap, step.sinks, step.window)
    spans = state.span_table
    pieces = pieces_of(heads, now.spans, spans, now.threads, state.partials)
    if not is_current(shared, generation):  # or `pieces` may be those of a later pass
        return 0, 0
    q, out = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    scratch = state.scratch + now.thread * state.scratch_bytes
    return pieces.count, attend(heads, q, out, spans, pieces, counter, now.tag, scratch)
