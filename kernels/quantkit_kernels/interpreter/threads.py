"""How threads meet and share work, inside compiled code: work counters, and sleep between passes.

No thread waits for a thread, only for work: pieces are handed out by counters, finished ones are counted, and whoever
needs them waits until all are. A thread that the system has put aside holds up the others by the one piece that it was
at; when it comes back it finds everything taken, and catches up or leaves. So more threads than cores are slower, but
not much.

Counters need no clearing: each carries the tag of the pass that counted last, higher from pass to pass, and counts from
zero for a higher one. A waiting thread spins first, since what it waits for is mostly microseconds away, then yields,
then sleeps. Nothing here knows what the work is; `dispatch.py` does.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    compare_exchange,
    cpu_relax,
    nanoseconds,
    prefetch,
    semaphore_post,
    semaphore_wait,
    sleep_thread,
    yield_thread,
)

COUNT_BITS = 24
"""Low bits of a counter, which count pieces; the tag stands above them."""
SPINS_BEFORE_YIELD = 100
"""A few microseconds of `cpu_relax`: where threads outnumber cores, a spinning one keeps others from working."""
NANOSECONDS_BEFORE_SLEEP = 200_000
"""Longer than a piece takes: its thread has been put aside, and may come back on the core that a sleeper frees."""
MICROSECONDS_OF_SLEEP = 50
NANOSECONDS_BEFORE_PARKING = 400_000
"""Longer than Python needs between two tokens."""
MIN_PREFETCH, MAX_PREFETCH = 4 * 1024, 256 * 1024
"""Bytes of weights that a thread prefetches at a barrier in any case, so that a product does not begin with a wait for
memory; and while it waits: what fits its cache beside what it works on."""
LINE = 64
"""Bytes of a cache line: what different threads write lies in different lines."""


class Shared(IntEnum):
    """Offsets in the memory that the threads of a pool share, `shared_bytes(threads)` long and zero at first."""

    GENERATION = 0 * LINE
    """Odd while a pass runs; higher from pass to pass."""
    STOP = 1 * LINE
    WORKERS = 2 * LINE
    """Two lines for each worker: whether it sleeps, and the semaphore on which it does."""


GENERATION, STOP, WORKERS = (int(place) for place in Shared)


def shared_bytes(threads: int) -> int:
    """Bytes of shared memory that a pool of `threads` needs."""
    return WORKERS + 2 * LINE * threads


# --- passes --------------------------------------------------------------------------------------------------------


@jit
def begin_pass(shared, threads):
    """Begin a pass, wake the workers that sleep, and return its generation."""
    generation = atomic_add(shared + GENERATION, 1) + 1
    for thread in range(1, threads):
        place = shared + WORKERS + 2 * LINE * thread
        if atomic_load(place):
            semaphore_post(place + LINE)
    return generation


@jit
def end_pass(shared):
    """Tell threads that are still looking for work that there is none."""
    atomic_add(shared + GENERATION, 1)


@jit
def is_current(shared, generation):
    """Whether that pass still runs; what was read of it before this was asked is its own then."""
    return atomic_load(shared + GENERATION) == generation


@jit
def await_pass(shared, thread, seen):
    """Wait for a pass other than `seen`, and return its generation; -1 when the pool stops."""
    place = shared + WORKERS + 2 * LINE * thread
    spins = since = 0
    while True:
        generation = atomic_load(shared + GENERATION)
        if generation != seen and generation & 1:
            return -1 if atomic_load(shared + STOP) else generation
        spins += 1
        if spins < SPINS_BEFORE_YIELD:
            cpu_relax()
        elif since == 0:
            since = nanoseconds()
        elif nanoseconds() - since < NANOSECONDS_BEFORE_PARKING:
            yield_thread()
        else:
            # Say so before looking once more: `begin_pass` looks here after it has begun.
            atomic_store(place, 1)
            generation = atomic_load(shared + GENERATION)
            if generation == seen or not generation & 1:
                semaphore_wait(place + LINE)
            atomic_store(place, 0)
            spins = since = 0


# --- work ----------------------------------------------------------------------------------------------------------


class Taker(NamedTuple):
    """Who takes pieces: what `take_next` asks of a `layout.PART`."""

    thread: int
    threads: int
    tag: int
    counter_stride: int


@jit
def tag_of(generation):
    """What the counters of a pass carry."""
    return generation << COUNT_BITS


@jit
def take(counter, tag, chunk, end):
    """First of the next `chunk` pieces that nobody has taken; `end` or more if there are none, or the pass is over."""
    while True:
        seen = atomic_load(counter)
        taken = max(seen - tag, 0)
        if taken >= end or compare_exchange(counter, seen, tag + taken + chunk):
            return taken


@jit
def outcome(pieces, done):
    """How many pieces a step has, and how many of them a thread did, in one number."""
    return pieces << 32 | done


@jit
def pieces_of(outcome):
    """The pieces of an `outcome`."""
    return outcome >> 32


@jit
def pieces_done(outcome):
    """Those of them that the thread did."""
    return outcome & 0xFFFFFFFF


@jit
def take_next(counter, now, turn, count, unit, chunk):
    """Next pieces of a thread's own share of `count`, or when that is used up, of what others have left of theirs.

    A share is taken from end to end, so that memory is read in order, and consists of whole units. `now` is the
    thread's `layout.PART`, or a `Taker`. Begin with `turn` 0 and go on with the one returned.

    Returns
    -------
    turn, first, last : int
        Pieces `first` to `last`; none when they are equal.
    """
    units = (count + unit - 1) // unit
    while turn < now.threads:
        owner = (now.thread + turn) % now.threads
        begin = unit * (units * owner // now.threads)
        end = min(unit * (units * (owner + 1) // now.threads), count)
        first = begin + take(counter + owner * now.counter_stride, now.tag, chunk, end - begin)
        if first < end:
            return turn, first, min(first + chunk, end)
        turn += 1
    return turn, count, count


@jit
def count_done(counter, tag, count):
    """Count pieces as done."""
    while True:
        seen = atomic_load(counter)
        if compare_exchange(counter, seen, tag + max(seen - tag, 0) + count):
            return


@jit
def await_done(counter, tag, total, weights, weight_bytes):
    """Wait until `total` pieces are done.

    Prefetches the first of `weight_bytes` bytes from `weights` on, and more while it waits, so that memory does not
    stand idle.
    """
    spins = since = 0
    last, least = weights + min(weight_bytes, MAX_PREFETCH), weights + min(weight_bytes, MIN_PREFETCH)
    while weights < least:
        prefetch(weights)
        weights += LINE
    while max(atomic_load(counter) - tag, 0) < total:
        if weights < last:
            for line in range(weights, weights + 4 * LINE, LINE):
                prefetch(line)
            weights += 4 * LINE
            continue
        spins += 1
        if spins < SPINS_BEFORE_YIELD:
            cpu_relax()
        elif since == 0:
            since = nanoseconds()
        elif nanoseconds() - since < NANOSECONDS_BEFORE_SLEEP:
            yield_thread()
        else:
            sleep_thread(MICROSECONDS_OF_SLEEP)
