"""How threads meet and share work, inside compiled code: work counters, and sleep between passes.

Nobody waits for a thread, only for work: pieces are handed out by counters, done ones are counted, and who needs them
waits until all are. A thread that the system has put aside holds up the others by the one piece that it was at; when it
comes back it finds everything taken, and catches up or leaves. So more threads than cores slow down but do not
collapse.

Counters need no clearing: each carries the tag of the pass that counted last, higher from pass to pass, and counts from
zero for a higher one. Waiting spins first, since what is awaited is mostly microseconds away, and then yields and
sleeps. Nothing here knows what the work is; `interpreter.py` does.
"""

from __future__ import annotations

from enum import IntEnum

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
"""A few microseconds of `cpu_relax`: where threads outnumber cores, who waits keeps others from working."""
NANOSECONDS_BEFORE_SLEEP = 200_000
"""Longer than a piece takes: who holds it has been put aside, and may come back on the core that a sleeper frees."""
MICROSECONDS_OF_SLEEP = 50
NANOSECONDS_BEFORE_PARKING = 400_000
"""Longer than Python needs between two tokens."""
LEAST_AHEAD, MOST_AHEAD = 4 * 1024, 256 * 1024
"""Bytes of weights that a thread asks for at a barrier in any case, so that a product does not begin with a wait for
memory; and while it waits: what fits its cache beside what it works on."""
LINE = 64
"""Bytes of a cache line: what different threads write is kept that far apart."""


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
def take_near(counters, apart, tag, thread, threads, turn, count, unit, chunk):
    """Next pieces of a thread's own part of `count`, or if that is used up, of what others have left of theirs.

    A part is taken from end to end, as memory likes it, and consists of whole units. Begin with `turn` 0 and go on with
    the one returned.

    Returns
    -------
    turn, first, last : int
        Pieces `first` to `last`; none when they are equal.
    """
    units = (count + unit - 1) // unit
    while turn < threads:
        owner = (thread + turn) % threads
        begin, end = unit * (units * owner // threads), min(unit * (units * (owner + 1) // threads), count)
        first = begin + take(counters + owner * apart, tag, chunk, end - begin)
        if first < end:
            return turn, first, min(first + chunk, end)
        turn += 1
    return turn, count, count


@jit
def report(counter, tag, count):
    """Count pieces as done."""
    while True:
        seen = atomic_load(counter)
        if compare_exchange(counter, seen, tag + max(seen - tag, 0) + count):
            return


@jit
def await_done(counter, tag, total, ahead, ahead_bytes):
    """Wait until `total` pieces are done.

    Asks for the first of `ahead_bytes` bytes from `ahead` on, and while it waits for more, so that memory does not
    stand idle.
    """
    spins = since = 0
    last, least = ahead + min(ahead_bytes, MOST_AHEAD), ahead + min(ahead_bytes, LEAST_AHEAD)
    while ahead < least:
        prefetch(ahead)
        ahead += LINE
    while max(atomic_load(counter) - tag, 0) < total:
        if ahead < last:
            for line in range(ahead, ahead + 4 * LINE, LINE):
                prefetch(line)
            ahead += 4 * LINE
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
