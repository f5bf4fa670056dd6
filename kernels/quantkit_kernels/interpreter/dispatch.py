"""One compiled function that runs a whole program, for every architecture.

All threads of a pool run it together over the same table (`table.py`), each as far as it comes: the work of a step is
handed out in pieces, those of its own part first (`threads.py`). Token steps that no barrier parts are taken token
after token, so that a row stays in the nearest cache. A barrier stands only where the table says so, and waits for
pieces, not for threads; who waits there asks for the weights that come next. It calls the kernels and computes nothing
itself; it neither allocates nor calls Python. `participate` is the only entry.

A thread that was put aside may go on in a pass that is over. It finds no work there: whatever says how much there is,
it has read before it made sure that the pass still ran, and the rest it reads with a piece in hand, without which no
pass ends.

Asked for times, each thread notes for each step when it arrived and when it began, the barrier behind it; and last,
when it arrived at the end of the pass. A run of token steps counts as its first step.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.attention.operands import Heads
from quantkit_kernels.attention.pages import store_kv
from quantkit_kernels.attention.sharing import attend, pieces_of
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.table import FIELDS, Field, Opcode, Word
from quantkit_kernels.interpreter.threads import (
    await_done,
    await_pass,
    begin_pass,
    end_pass,
    is_current,
    report,
    tag_of,
    take_near,
)
from quantkit_kernels.linear.activations import quantize
from quantkit_kernels.linear.packed import ROW_TILES, linear_int4, linear_int8
from quantkit_kernels.linear.plain import linear_bf16, linear_f16, linear_f32
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.rows.arithmetic import add, copy, scale
from quantkit_kernels.rows.embedding import embed
from quantkit_kernels.rows.gates import gated
from quantkit_kernels.rows.norms import rms_norm
from quantkit_kernels.rows.rotary import rope, rotation
from quantkit_kernels.simd import get_f32, get_i64, nanoseconds, put_i64

STEP_BYTES = 8 * FIELDS
(EMBED, SCALE, ADD, RMS_NORM, GATED, ROTATION, ROPE, STORE_KV, SELECT, QUANTIZE, LINEAR, ATTENTION) = map(int, Opcode)
F32, F16, BF16, INT8, INT4 = range(5)
"""`blocks.Kind.code` (a test compares)."""
MANY = 8
"""Tokens from which on a chunk of a matrix product takes longer than its weights take to arrive."""

(
    OPCODE, BARRIER, IS_WANTED, RUN, AHEAD, AHEAD_BYTES, OUT, OUT_STRIDE, OUT_APART, A, A_STRIDE, A_APART, B, B_STRIDE,
    B_APART, WEIGHT, ROW_SCALES, BIAS, KIND, ROWS, COLUMNS, CHUNK, SIZE, CACHE_OFFSET, KV_HEADS, GROUP, WINDOW, FACTOR,
    EPS, OFFSET,
) = (8 * int(field) for field in Field)  # fmt: skip
(
    TABLE, STEPS, TOKENS, IDS, POSITIONS, PAGES, WANTED, WANTED_TOKENS, RUNS, RUN_TABLE, LOGITS, LOGITS_STRIDE,
    COUNTERS, SCRATCH, SCRATCH_BYTES, KV_KIND, THREADS, TIMES, PARTS,
) = (8 * int(word) for word in Word)  # fmt: skip
"""Where each word stands, in bytes."""


@jit(entry=True)
def participate(thread, shared, state):
    """Take part in passes as one thread of a pool.

    Thread 0 wakes the others, runs one pass, and returns when all have finished it. Every other thread serves pass
    after pass until the pool stops.

    Parameters
    ----------
    thread : int
        Number of this thread, 0 for the caller.
    shared : int
        Address of the pool's memory, see `threads.Shared`.
    state : int
        Address of the pass's words, see `table.Word`; read when a pass begins.
    """
    generation = 0
    if thread == 0:
        generation = begin_pass(shared, get_i64(state + THREADS))
        _run(thread, shared, state, generation)
        end_pass(shared)
        return
    while True:
        generation = await_pass(shared, thread, generation)
        if generation < 0:
            return
        _run(thread, shared, state, generation)


class Pass(NamedTuple):
    """What a thread knows of the pass that it takes part in."""

    thread: int
    threads: int
    tag: int
    """Of its counters."""
    tokens: int
    wanted: int
    runs: int
    """Of attention."""
    apart: int
    """Bytes between the counters of one thread's part and the next one's."""


@jit
def _run(thread, shared, state, generation):
    steps, threads, times = get_i64(state + STEPS), get_i64(state + THREADS), get_i64(state + TIMES)
    now = Pass(
        thread, threads, tag_of(generation), get_i64(state + TOKENS), get_i64(state + WANTED), get_i64(state + RUNS),
        8 * (steps + 1),
    )  # fmt: skip
    if not is_current(shared, generation):
        return
    step, counter = get_i64(state + TABLE), get_i64(state + COUNTERS)
    end, done = step + STEP_BYTES * steps, counter + now.apart * threads
    finished = done + 8 * steps
    if times:
        times += 16 * (steps + 1) * thread
    times = _note(times, 1)
    total = mine = 0
    section = done
    while step < end:
        if get_i64(step + BARRIER):
            if mine:
                report(section, now.tag, mine)
            ahead_bytes = get_i64(step + AHEAD_BYTES)
            ahead = get_i64(step + AHEAD) + ahead_bytes * thread // threads
            await_done(section, now.tag, total, ahead, ahead_bytes // threads)
            if not is_current(shared, generation):
                return
            total = mine = 0
            section = done
        run = get_i64(step + RUN)
        times = _note(times, 1)
        opcode = get_i64(step + OPCODE)
        if opcode == LINEAR:
            pieces, taken = _linear(step, counter, state, now)
        elif opcode == ATTENTION:
            pieces, taken = _attention(step, counter, shared, state, generation, now)
        else:
            pieces, taken = _token_steps(step, run, counter, state, now)
        total += pieces
        mine += taken
        times = _note(times, 2 * run - 1)
        step += STEP_BYTES * run
        counter += 8 * run
        done += 8 * run
    if mine:
        report(section, now.tag, mine)
    if times:
        report(finished, now.tag, 1)
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
def _token_steps(step, run, counter, state, now):
    """A run of token steps; returns its pieces, tokens, and how many this thread did."""
    count = now.wanted if get_i64(step + IS_WANTED) else now.tokens
    # Whole blocks of 8 where there are enough, so that threads share few cache lines.
    unit = 8 if count >= 8 * now.threads else 1
    turn = taken = 0
    while True:
        turn, first, last = take_near(counter, now.apart, now.tag, now.thread, now.threads, turn, count, unit, unit)
        if first == last:
            return count, taken
        for token in range(first, last):
            for inside in range(step, step + STEP_BYTES * run, STEP_BYTES):
                _token_step(inside, state, now.thread, token)
        taken += last - first


@jit
def _token_step(step, state, thread, token):
    """One token of a step that treats every token by itself."""
    opcode = get_i64(step + OPCODE)
    out = get_i64(step + OUT) + token * get_i64(step + OUT_STRIDE) + thread * get_i64(step + OUT_APART)
    a = get_i64(step + A) + token * get_i64(step + A_STRIDE) + thread * get_i64(step + A_APART)
    b = get_i64(step + B) + token * get_i64(step + B_STRIDE) + thread * get_i64(step + B_APART)
    columns = get_i64(step + COLUMNS)
    if opcode == QUANTIZE:
        quantize(a, columns, out)
    elif opcode == RMS_NORM:
        size, eps, offset = get_i64(step + SIZE), get_f32(step + EPS), get_f32(step + OFFSET)
        rms_norm(a, get_i64(step + WEIGHT), out, columns, size, eps, offset)
    elif opcode == ADD:
        add(a, b, out, columns)
    elif opcode == GATED:
        gated(a, b, out, columns, get_i64(step + GROUP))
    elif opcode == ROPE:
        rope(a, b, out, columns, get_i64(step + SIZE))
    elif opcode == STORE_KV:
        position = get_i64(get_i64(state + POSITIONS) + 8 * token)
        pages = get_i64(get_i64(state + PAGES) + 8 * token)
        offset, kv_heads, head_dim = get_i64(step + CACHE_OFFSET), get_i64(step + KV_HEADS), get_i64(step + SIZE)
        store_kv(get_i64(state + KV_KIND), a, b, pages, position, offset, kv_heads, head_dim)
    elif opcode == EMBED:
        row = get_i64(get_i64(state + IDS) + 8 * token)
        embed(get_i64(step + KIND), get_i64(step + WEIGHT), get_i64(step + ROW_SCALES), row, columns, out)
    elif opcode == SCALE:
        scale(a, get_f32(step + FACTOR), out, columns)
    elif opcode == ROTATION:
        position = get_i64(get_i64(state + POSITIONS) + 8 * token)
        rotation(position, get_i64(step + WEIGHT), get_i64(step + SIZE), get_f32(step + FACTOR), out)
    elif opcode == SELECT:
        source = get_i64(get_i64(state + WANTED_TOKENS) + 8 * token)
        copy(get_i64(step + A) + source * get_i64(step + A_STRIDE), out, columns)


@jit
def _linear(step, counter, state, now):
    """A matrix product; returns its pieces, row tiles, and how many this thread did."""
    rows, tokens = get_i64(step + ROWS), now.wanted if get_i64(step + IS_WANTED) else now.tokens
    tiles = (rows + 7) >> 3 if tokens else 0
    # Many tokens make a chunk long work: threads are to finish together.
    unit = ROW_TILES if tokens > 1 else 1
    chunk = max(1, get_i64(step + CHUNK) * MANY // max(tokens, MANY) // unit) * unit
    turn = taken = 0
    while True:
        turn, first, last = take_near(counter, now.apart, now.tag, now.thread, now.threads, turn, tiles, unit, chunk)
        if first == last:
            return tiles, taken
        _row_tiles(step, state, first, last, rows, tokens)
        taken += last - first


@jit
def _row_tiles(step, state, first, last, rows, tokens):
    """Row tiles `first` to `last` of a matrix product, for all tokens."""
    matrix = Matrix(
        get_i64(step + WEIGHT), get_i64(step + ROW_SCALES), get_i64(step + BIAS), rows, get_i64(step + COLUMNS)
    )
    x, y = Rows(get_i64(step + A), get_i64(step + A_STRIDE)), Rows(get_i64(step + OUT), get_i64(step + OUT_STRIDE))
    if y.address == 0:
        y = Rows(get_i64(state + LOGITS), get_i64(state + LOGITS_STRIDE))
    kind = get_i64(step + KIND)
    if kind == INT4:
        linear_int4(matrix, x, y, tokens, first, last)
    elif kind == INT8:
        linear_int8(matrix, x, y, tokens, first, last)
    elif kind == F16:
        linear_f16(matrix, x, y, tokens, first, last)
    elif kind == BF16:
        linear_bf16(matrix, x, y, tokens, first, last)
    else:
        linear_f32(matrix, x, y, tokens, first, last)


@jit
def _attention(step, counter, shared, state, generation, now):
    """Attention of the whole batch over one layer; returns its pieces, and how many this thread did."""
    heads = Heads(
        get_i64(state + KV_KIND), get_i64(step + CACHE_OFFSET), get_i64(step + KV_HEADS), get_i64(step + GROUP),
        get_i64(step + SIZE), get_f32(step + FACTOR), get_i64(step + WINDOW),
    )  # fmt: skip
    spans = get_i64(state + RUN_TABLE)
    pieces = pieces_of(heads, now.runs, spans, now.threads, get_i64(state + PARTS))
    if not is_current(shared, generation):  # or `pieces` may be those of a later pass
        return 0, 0
    q, out = Rows(get_i64(step + A), get_i64(step + A_STRIDE)), Rows(get_i64(step + OUT), get_i64(step + OUT_STRIDE))
    scratch = get_i64(state + SCRATCH) + now.thread * get_i64(state + SCRATCH_BYTES)
    return pieces.count, attend(heads, q, out, spans, pieces, counter, now.tag, scratch)
