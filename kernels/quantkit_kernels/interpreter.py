"""One compiled function that runs a whole program, for every architecture.

All threads of a pool run it together over the same table (`table.py`): token steps are split by token, and those that
no barrier parts are taken token after token, so that a row stays in the nearest cache; the others are handed out in
pieces by an atomic counter. A barrier stands only where the table says so, and who waits there asks for the weights
that come next. It calls the kernels and computes nothing itself; it neither allocates nor calls Python. `participate`
is the only entry.

Asked for times, each thread notes for each step when it arrived and when it began, the barrier behind it; and last,
when it arrived at the end of the pass. A run of token steps counts as its first step.
"""

from __future__ import annotations

from .activations import quantize
from .attention import Heads, attend
from .elementwise import add, copy, embed, gated, rms_norm, rope, rotation, scale
from .jit import jit
from .kv_pages import store_kv
from .matmul import linear_bf16, linear_f16, linear_f32, linear_int4, linear_int8
from .simd import get_f32, get_i64, nanoseconds, put_i64
from .table import FIELDS, Field, Opcode, Word
from .threads import await_work, barrier, start_workers, take

STEP_BYTES = 8 * FIELDS
(EMBED, SCALE, ADD, RMS_NORM, GATED, ROTATION, ROPE, STORE_KV, SELECT, QUANTIZE, LINEAR, ATTENTION) = map(int, Opcode)
F32, F16, BF16, INT8, INT4 = range(5)
"""`blocks.Kind.code` (a test compares)."""

(
    OPCODE, BARRIER, IS_WANTED, RUN, AHEAD, AHEAD_BYTES, OUT, OUT_STRIDE, OUT_APART, A, A_STRIDE, A_APART, B, B_STRIDE,
    B_APART, WEIGHT, ROW_SCALES, BIAS, KIND, ROWS, COLUMNS, CHUNK, SIZE, LAYER, KV_HEADS, GROUP, WINDOW, FACTOR, EPS,
    OFFSET,
) = (8 * int(field) for field in Field)  # fmt: skip
(
    TABLE, STEPS, TOKENS, IDS, POSITIONS, PAGES, WANTED, WANTED_TOKENS, RUNS, RUN_TABLE, LOGITS, LOGITS_STRIDE,
    COUNTERS, SCRATCH, SCRATCH_BYTES, KV_KIND, THREADS, ARRIVED, TIMES, PARTS,
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
    seen = 0
    if thread == 0:
        _clear_counters(state)
        start_workers(shared, get_i64(state + THREADS))
    while True:
        if thread > 0:
            seen = await_work(shared, thread, seen)
            if seen < 0:
                return
        _run(thread, shared, state)
        if thread == 0:
            return


@jit
def _clear_counters(state):
    counters = get_i64(state + COUNTERS)
    for place in range(counters, counters + 8 * get_i64(state + STEPS) * get_i64(state + THREADS), 8):
        put_i64(place, 0)


@jit
def _run(thread, shared, state):
    threads = get_i64(state + THREADS)
    target = get_i64(state + ARRIVED)
    step = get_i64(state + TABLE)
    counter = get_i64(state + COUNTERS)
    tokens, wanted = get_i64(state + TOKENS), get_i64(state + WANTED)
    steps, times = get_i64(state + STEPS), get_i64(state + TIMES)
    if times:
        times += 16 * (steps + 1) * thread
    end = step + STEP_BYTES * steps
    times = _note(times, 1)
    while step < end:
        if get_i64(step + BARRIER):
            target += threads
            ahead_bytes = get_i64(step + AHEAD_BYTES)
            barrier(shared, target, get_i64(step + AHEAD) + ahead_bytes * thread // threads, ahead_bytes // threads)
        count = wanted if get_i64(step + IS_WANTED) else tokens
        opcode = get_i64(step + OPCODE)
        run = get_i64(step + RUN)
        times = _note(times, 1)
        if opcode == LINEAR:
            _linear(step, counter, state, count, thread)
        elif opcode == ATTENTION:
            _attention(step, counter, state, thread)
        else:
            for token in range(_share(count, thread, threads), _share(count, thread + 1, threads)):
                for inside in range(step, step + STEP_BYTES * run, STEP_BYTES):
                    _token_step(inside, state, thread, token, count)
        times = _note(times, 2 * run - 1)
        step += STEP_BYTES * run
        counter += 8 * run
    barrier(shared, target + threads, 0, 0)


@jit
def _share(count, thread, threads):
    """First token of a thread; whole blocks of 8 where there are enough, so that threads share few cache lines."""
    if count < 8 * threads:
        return count * thread // threads
    return min(count, 8 * (((count + 7) >> 3) * thread // threads))


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
def _token_step(step, state, thread, token, count):
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
        layer, kv_heads, head_dim = get_i64(step + LAYER), get_i64(step + KV_HEADS), get_i64(step + SIZE)
        store_kv(get_i64(state + KV_KIND), a, b, pages, position, layer, kv_heads, head_dim)
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
def _linear(step, counter, state, tokens, thread):
    """Row tiles of a matrix product: of this thread's part, a chunk at a time, then what others have left of theirs.

    A part is read from end to end, as memory likes it; neighbours who slow a thread down cost it only its last chunks.
    """
    rows, chunk = get_i64(step + ROWS), get_i64(step + CHUNK)
    tiles, threads, apart = (rows + 7) >> 3, get_i64(state + THREADS), 8 * get_i64(state + STEPS)
    for turn in range(threads):
        owner = (thread + turn) % threads
        begin, end = tiles * owner // threads, tiles * (owner + 1) // threads
        while True:
            first = begin + take(counter + owner * apart, chunk)
            if first >= end:
                break
            _row_tiles(step, state, first, min(first + chunk, end), rows, tokens)


@jit
def _row_tiles(step, state, first, last, rows, tokens):
    """Row tiles `first` to `last` of a matrix product, for all tokens."""
    weight, row_scales, bias = get_i64(step + WEIGHT), get_i64(step + ROW_SCALES), get_i64(step + BIAS)
    columns, kind = get_i64(step + COLUMNS), get_i64(step + KIND)
    x, x_stride = get_i64(step + A), get_i64(step + A_STRIDE)
    y, y_stride = get_i64(step + OUT), get_i64(step + OUT_STRIDE)
    if y == 0:
        y, y_stride = get_i64(state + LOGITS), get_i64(state + LOGITS_STRIDE)
    if kind == INT4:
        linear_int4(first, last, weight, row_scales, bias, columns, x, x_stride, tokens, y, y_stride)
    elif kind == INT8:
        linear_int8(first, last, weight, row_scales, bias, columns, x, x_stride, tokens, y, y_stride)
    elif kind == F16:
        linear_f16(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)
    elif kind == BF16:
        linear_bf16(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)
    else:
        linear_f32(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)


@jit
def _attention(step, counter, state, thread):
    """Attention of the whole batch over one layer; `attend` hands out its pieces."""
    heads = Heads(
        get_i64(state + KV_KIND), get_i64(step + LAYER), get_i64(step + KV_HEADS), get_i64(step + GROUP),
        get_i64(step + SIZE), get_f32(step + FACTOR), get_i64(step + WINDOW),
    )  # fmt: skip
    attend(
        heads, get_i64(step + A), get_i64(step + A_STRIDE), get_i64(step + OUT), get_i64(step + OUT_STRIDE),
        get_i64(state + RUNS), get_i64(state + RUN_TABLE), counter, get_i64(state + THREADS),
        get_i64(state + SCRATCH) + thread * get_i64(state + SCRATCH_BYTES), get_i64(state + PARTS),
    )  # fmt: skip
