"""One compiled function that runs a whole program, for every architecture.

All threads of a pool run it together over the same table (`table.py`): token steps are split by token, the others
handed out in pieces by an atomic counter, and a barrier stands only where the table says so. It calls the kernels and
computes nothing itself; it neither allocates nor calls Python. `participate` is the only entry.

Asked for times, each thread notes for each step when it arrived and when it began, the barrier behind it; and last,
when it arrived at the end of the pass.
"""

from __future__ import annotations

from .activations import quantize
from .attention import attend, store_kv
from .elementwise import add, copy, embed, gated, rms_norm, rope, rotation, scale
from .jit import jit
from .matmul import linear_bf16, linear_f16, linear_f32, linear_int4, linear_int8
from .simd import get_f32, get_i64, nanoseconds, put_i64
from .table import FIELDS, Field, Opcode, Word
from .threads import await_work, barrier, start_workers, take

STEP_BYTES = 8 * FIELDS
(EMBED, SCALE, ADD, RMS_NORM, GATED, ROTATION, ROPE, STORE_KV, SELECT, QUANTIZE, LINEAR, ATTENTION) = map(int, Opcode)
F32, F16, BF16, INT8, INT4 = range(5)
"""`blocks.Kind.code` (a test compares)."""

(
    OPCODE, BARRIER, IS_WANTED, OUT, OUT_STRIDE, A, A_STRIDE, B, B_STRIDE, WEIGHT, ROW_SCALES, BIAS, KIND, ROWS,
    COLUMNS, CHUNK, SIZE, LAYER, KV_HEADS, GROUP, WINDOW, FACTOR, EPS, OFFSET,
) = (8 * int(field) for field in Field)  # fmt: skip
(
    TABLE, STEPS, TOKENS, IDS, POSITIONS, PAGES, WANTED, WANTED_TOKENS, RUNS, RUN_TABLE, LOGITS, LOGITS_STRIDE,
    COUNTERS, SCRATCH, SCRATCH_BYTES, KV_KIND, THREADS, ARRIVED, TIMES,
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
    for step in range(get_i64(state + STEPS)):
        put_i64(counters + 8 * step, 0)


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
    for _ in range(steps):
        times = _note(times)
        if get_i64(step + BARRIER):
            target += threads
            barrier(shared, target)
        times = _note(times)
        count = wanted if get_i64(step + IS_WANTED) else tokens
        opcode = get_i64(step + OPCODE)
        if opcode == LINEAR:
            _linear(step, counter, state, count)
        elif opcode == ATTENTION:
            _attention(step, counter, state, thread)
        else:
            for token in range(count * thread // threads, count * (thread + 1) // threads):
                _token_step(opcode, step, state, token, count)
        step += STEP_BYTES
        counter += 8
    _note(times)
    barrier(shared, target + threads)


@jit
def _note(times):
    """Write the time, if times are asked for; returns where the next one goes."""
    if not times:
        return 0
    put_i64(times, nanoseconds())
    return times + 8


@jit
def _token_step(opcode, step, state, token, count):
    """One token of a step that treats every token by itself."""
    out = get_i64(step + OUT) + token * get_i64(step + OUT_STRIDE)
    a = get_i64(step + A) + token * get_i64(step + A_STRIDE)
    b = get_i64(step + B) + token * get_i64(step + B_STRIDE)
    columns = get_i64(step + COLUMNS)
    if opcode == QUANTIZE:
        quantize(a, columns, token, count, get_i64(step + OUT))
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
def _linear(step, counter, state, tokens):
    """Row tiles of a matrix product, a chunk at a time, until none is left."""
    weight, row_scales, bias = get_i64(step + WEIGHT), get_i64(step + ROW_SCALES), get_i64(step + BIAS)
    rows, columns, kind = get_i64(step + ROWS), get_i64(step + COLUMNS), get_i64(step + KIND)
    x, x_stride = get_i64(step + A), get_i64(step + A_STRIDE)
    y, y_stride = get_i64(step + OUT), get_i64(step + OUT_STRIDE)
    if y == 0:
        y, y_stride = get_i64(state + LOGITS), get_i64(state + LOGITS_STRIDE)
    tiles, chunk = (rows + 7) >> 3, get_i64(step + CHUNK)
    while True:
        first = take(counter, chunk)
        if first >= tiles:
            return
        last = min(first + chunk, tiles)
        if kind == INT4:
            linear_int4(first, last, weight, row_scales, bias, columns, x, tokens, y, y_stride)
        elif kind == INT8:
            linear_int8(first, last, weight, row_scales, bias, columns, x, tokens, y, y_stride)
        elif kind == F16:
            linear_f16(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)
        elif kind == BF16:
            linear_bf16(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)
        else:
            linear_f32(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)


@jit
def _attention(step, counter, state, thread):
    """Runs of query tokens times KV heads, one pair at a time, until none is left."""
    kv_heads, group, head_dim = get_i64(step + KV_HEADS), get_i64(step + GROUP), get_i64(step + SIZE)
    layer, window, factor = get_i64(step + LAYER), get_i64(step + WINDOW), get_f32(step + FACTOR)
    q, q_stride = get_i64(step + A), get_i64(step + A_STRIDE)
    out, out_stride = get_i64(step + OUT), get_i64(step + OUT_STRIDE)
    kind = get_i64(state + KV_KIND)
    scratch = get_i64(state + SCRATCH) + thread * get_i64(state + SCRATCH_BYTES)
    pieces = get_i64(state + RUNS) * kv_heads
    while True:
        piece = take(counter, 1)
        if piece >= pieces:
            return
        run = get_i64(state + RUN_TABLE) + 32 * (piece // kv_heads)
        kv_head = piece % kv_heads
        first, count = get_i64(run), get_i64(run + 8)
        position, pages = get_i64(run + 16), get_i64(run + 24)
        attend(
            kind, q + first * q_stride, q_stride, out + first * out_stride, out_stride, count, position, pages,
            layer, kv_heads, kv_head, group, head_dim, factor, window, scratch,
        )  # fmt: skip
