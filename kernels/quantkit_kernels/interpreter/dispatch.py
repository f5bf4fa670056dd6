"""One compiled function that runs a whole program, for every architecture.

All threads of a pool run it over the same steps (`layout.py`), each as far as it comes. A step holds the address of its
kernel (`kernels.py`), so only the kernels of a program are ever compiled. Kernels that share the work of a pass hand it
out in pieces themselves, those of a thread's own share first (`threads.py`). The others take a token, and fused steps
are taken token after token, so that a row stays in the nearest cache. A barrier stands only where a step says so, and
waits for pieces, not for threads; a waiting thread prefetches the next weights. Nothing is computed here, nothing is
allocated and no Python called. `participate` is the only entry.

A thread that the system had put aside may go on in a pass that is over. It finds no work there: how much there is, it
has read before it made sure that the pass still runs, and the rest it reads with a piece in hand, without which no pass
ends.

Asked for times, each thread notes for each step when it arrived and when it began, the barrier behind it; and last,
when it arrived at the end of the pass. Fused steps count as the first of them. Thread 0 adds them up: Python would take
long for that, between passes.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.layout import PART
from quantkit_kernels.interpreter.records import STEP_BYTES, part_at, pass_at, row_count, step_at
from quantkit_kernels.interpreter.threads import (
    await_done,
    await_pass,
    begin_pass,
    count_done,
    end_pass,
    is_current,
    pieces_done,
    pieces_of,
    tag_of,
    take_next,
)
from quantkit_kernels.interpreter.tokens import list_tokens
from quantkit_kernels.simd import call, get_i64, nanoseconds, put_i64, record_on_stack

part_on_stack = record_on_stack(PART)


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
    part = part_on_stack()
    now = part_at(part)
    now.thread, now.shared, now.words = thread, shared, words
    now.generation = 0
    if thread == 0:
        list_tokens(words)
        now.generation = begin_pass(shared, pass_at(words).threads)
        _run(part)
        end_pass(shared)
        _add_times(pass_at(words))
        return
    while True:
        now.generation = await_pass(shared, thread, now.generation)
        if now.generation < 0:
            return
        _run(part)


@jit
def _run(part):
    now = part_at(part)
    state = pass_at(now.words)
    steps, times = state.step_count, state.times
    now.threads, now.tag, now.counter_stride = state.threads, tag_of(now.generation), 8 * (steps + 1)
    now.tokens, now.wanted, now.spans, now.chunks = state.tokens, state.wanted, state.spans, state.chunks
    address, counter = state.steps, state.counters
    if not is_current(now.shared, now.generation):
        return
    end, done = address + STEP_BYTES * steps, counter + now.counter_stride * now.threads
    finished = done + 8 * steps
    if times:
        times += 16 * (steps + 1) * now.thread
    times = _note(times, 1)
    total = mine = 0
    section = done
    while address < end:
        step = step_at(address)
        if step.barrier:
            if mine:
                count_done(section, now.tag, mine)
            prefetch_bytes = step.prefetch_bytes // now.threads
            await_done(section, now.tag, total, step.prefetch + prefetch_bytes * now.thread, prefetch_bytes)
            if not is_current(now.shared, now.generation):
                return
            total = mine = 0
            section = done
        fused = step.fused
        times = _note(times, 1)
        if step.shared:
            outcome = call(step.kernel, (address, counter, part))
            total += pieces_of(outcome)
            mine += pieces_done(outcome)
        else:
            total += row_count(step, now)
            mine += _token_steps(address, fused, counter, part)
        times = _note(times, 2 * fused - 1)
        address += STEP_BYTES * fused
        counter += 8 * fused
        done += 8 * fused
    if mine:
        count_done(section, now.tag, mine)
    if times:
        count_done(finished, now.tag, 1)
    if now.thread == 0:
        await_done(section, now.tag, total, 0, 0)
        if times:
            await_done(finished, now.tag, now.threads, 0, 0)


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
def _add_times(state):
    """Add what the threads noted of a pass to the sums behind it."""
    if not state.times:
        return
    size = 16 * (state.step_count + 1)
    total, end = size * state.threads, 0
    for place in range(state.times + size, state.times + total + 1, size):
        end = max(end, get_i64(place - 16))
    for place in range(state.times, state.times + total, 16):
        arrived, began = get_i64(place), get_i64(place + 8)
        last = (place + 16 - state.times) % size == 0
        if last:  # no thread notes the end itself: it comes when the last one arrives
            began = end
        else:
            put_i64(place + total + 8, get_i64(place + total + 8) + get_i64(place + 16) - began)
        put_i64(place + total, get_i64(place + total) + began - arrived)


@jit
def _token_steps(address, fused, counter, part):
    """Fused token steps; returns how many of their pieces, tokens, this thread did."""
    now = part_at(part)
    count = row_count(step_at(address), now)
    # Whole blocks of 8 where there are enough, so that threads share few cache lines.
    unit = 8 if count >= 8 * now.threads else 1
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, count, unit, unit)
        if first == last:
            return taken
        for token in range(first, last):
            for inside in range(address, address + STEP_BYTES * fused, STEP_BYTES):
                call(step_at(inside).kernel, (inside, part, token))
        taken += last - first
