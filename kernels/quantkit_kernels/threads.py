"""How threads meet and share work, inside compiled code: a barrier, a work counter, and sleep between passes.

Waiting spins first, since what is awaited is mostly microseconds away, and then yields or sleeps, so that more threads
than cores slow down but do not collapse. Nothing here knows what the work is; `interpreter.py` does.
"""

from __future__ import annotations

from enum import IntEnum

from .jit import jit
from .simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    cpu_relax,
    prefetch,
    semaphore_post,
    semaphore_wait,
    yield_thread,
)

SPINS_BEFORE_YIELD = 100
"""A few microseconds of `cpu_relax`: where threads outnumber cores, who waits keeps others from working."""
SPINS_BEFORE_SLEEP = 20000
"""A few hundred microseconds: longer than Python needs between two tokens."""
MOST_AHEAD = 256 * 1024
"""Bytes of weights that a waiting thread asks for: what fits its cache beside what it works on."""
LINE = 64
"""Bytes of a cache line: what different threads write is kept that far apart."""


class Shared(IntEnum):
    """Offsets in the memory that the threads of a pool share, `shared_bytes(threads)` long and zero at first."""

    ARRIVED = 0 * LINE
    GENERATION = 1 * LINE
    STOP = 2 * LINE
    WORKERS = 3 * LINE
    """Two lines for each worker: whether it sleeps, and the semaphore on which it does."""


ARRIVED, GENERATION, STOP, WORKERS = (int(place) for place in Shared)


def shared_bytes(threads: int) -> int:
    """Bytes of shared memory that a pool of `threads` needs."""
    return WORKERS + 2 * LINE * threads


@jit
def barrier(shared, target, ahead, ahead_bytes):
    """Arrive, and wait until `target` arrivals have been counted since the pool began.

    Who waits asks meanwhile for up to `ahead_bytes` bytes from `ahead` on, so that memory does not stand idle.
    """
    atomic_add(shared + ARRIVED, 1)
    spins = 0
    last = ahead + min(ahead_bytes, MOST_AHEAD)
    while atomic_load(shared + ARRIVED) < target:
        if ahead < last:
            for line in range(ahead, ahead + 4 * LINE, LINE):
                prefetch(line)
            ahead += 4 * LINE
            continue
        spins += 1
        if spins < SPINS_BEFORE_YIELD:
            cpu_relax()
        else:
            yield_thread()


@jit
def take(counter, chunk):
    """First of the next `chunk` pieces of work that nobody has taken."""
    return atomic_add(counter, chunk)


@jit
def start_workers(shared, threads):
    """Begin a new generation of work and wake the workers that sleep."""
    atomic_add(shared + GENERATION, 1)
    for thread in range(1, threads):
        place = shared + WORKERS + 2 * LINE * thread
        if atomic_load(place):
            semaphore_post(place + LINE)


@jit
def await_work(shared, thread, seen):
    """Wait for a generation other than `seen`, and return it; -1 when the pool stops."""
    place = shared + WORKERS + 2 * LINE * thread
    spins = 0
    while atomic_load(shared + GENERATION) == seen:
        spins += 1
        if spins < SPINS_BEFORE_SLEEP:
            cpu_relax()
            continue
        # Say so before looking once more: `start_workers` looks here after it has begun the generation.
        atomic_store(place, 1)
        if atomic_load(shared + GENERATION) == seen:
            semaphore_wait(place + LINE)
        atomic_store(place, 0)
    return -1 if atomic_load(shared + STOP) else atomic_load(shared + GENERATION)
