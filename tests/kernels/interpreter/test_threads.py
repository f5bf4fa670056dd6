"""Work counters: every piece is done once, by whichever thread comes, and nobody works for a pass that is over."""

from __future__ import annotations

import ctypes
import threading
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.threads import (
    COUNT_BITS,
    GENERATION,
    LINE,
    STOP,
    WORKERS,
    Taker,
    await_done,
    await_pass,
    begin_pass,
    count_done,
    end_pass,
    is_current,
    shared_bytes,
    tag_of,
    take,
    take_next,
)
from quantkit_kernels.simd import atomic_add, cpu_relax, get_i64, put_i64

SECTIONS, MOST = 20, 64


@jit(entry=True)
def take_one(counter, tag, chunk, end):
    return take(counter, tag, chunk, end)


@jit(entry=True)
def report_some(counter, tag, count):
    count_done(counter, tag, count)


@jit(entry=True)
def deal(counters, tag, thread, threads, count, unit, chunk, out, most):
    """All pieces that one thread gets -> how many chunks; where they begin and end goes to `out`."""
    turn = taken = 0
    while taken < most:
        turn, first, last = take_next(counters, Taker(thread, threads, tag, 8), turn, count, unit, chunk)
        if first == last:
            break
        put_i64(out + 16 * taken, first)
        put_i64(out + 16 * taken + 8, last)
        taken += 1
    return taken


def address(array: NDArray[Any]) -> int:
    return array.ctypes.data


def test_a_counter_counts_anew_for_each_pass() -> None:
    counter = np.zeros(1, np.int64)
    first, second = (1 << COUNT_BITS), (3 << COUNT_BITS)
    assert [take_one(address(counter), first, 4, 10) for _ in range(4)] == [0, 4, 8, 12]
    assert take_one(address(counter), second, 4, 10) == 0
    assert take_one(address(counter), first, 4, 10) >= 10, "work for a pass that is over"
    assert take_one(address(counter), second, 4, 10) == 4
    report_some(address(counter), 5 << COUNT_BITS, 3)
    assert counter[0] == (5 << COUNT_BITS) + 3


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 60),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_every_piece_is_dealt_once_in_whole_units(
    threads: int, count: int, unit: int, chunk: int, random: Random
) -> None:
    counters, seen = np.zeros(threads, np.int64), np.zeros(count, int)
    out = np.zeros((count + 1, 2), np.int64)
    left = set(range(threads))
    while left:
        thread = random.choice(sorted(left))
        most = random.randint(1, 3)
        taken = deal(address(counters), 1 << COUNT_BITS, thread, threads, count, unit, unit * chunk, address(out), most)
        for first, last in out[:taken]:
            seen[first:last] += 1
            assert first % unit == 0
            assert last % unit == 0 or last == count
        if taken < most:
            left.remove(thread)
    assert (seen == 1).all()


CORES = {
    "one of two is four times as slow": [1.0, 0.25],
    "one of four is busy with something else": [1.0, 1.0, 1.0, 0.5],
    "8 performance cores and 8 efficient ones": [1.0] * 8 + [0.55] * 8,
    "6 performance cores, 8 efficient ones, 2 for low power": [1.0] * 6 + [0.6] * 8 + [0.3] * 2,
}
"""Pieces in a unit of time that each core does."""


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("cores", CORES)
def test_slow_cores_cost_what_they_lack_and_no_more(cores: str, chunk: int) -> None:
    """All finish when their speeds together would, but for one chunk in the hands of the slowest: nobody waits."""
    speeds, count = CORES[cores], 800
    counters, out = np.zeros(len(speeds), np.int64), np.zeros((1, 2), np.int64)
    times, dealt, done = [0.0] * len(speeds), 0, [0] * len(speeds)
    while dealt < count:
        thread = min(range(len(speeds)), key=times.__getitem__)  # who is free first takes the next chunk
        taken = deal(address(counters), 1 << COUNT_BITS, thread, len(speeds), count, 1, chunk, address(out), 1)
        assert taken == 1
        pieces = int(out[0, 1] - out[0, 0])
        times[thread] += pieces / speeds[thread]
        done[thread] += pieces
        dealt += pieces
    assert sum(done) == count
    assert max(times) <= count / sum(speeds) + chunk / min(speeds)
    shares = [count * speed / sum(speeds) for speed in speeds]
    assert done == pytest.approx(shares, abs=2 * chunk * max(speeds) / min(speeds))


@jit
def _sections(shared, thread, threads, generation, words):
    """A piece is 1 more than its neighbour in the section before; the first section begins with a number of a pass."""
    for _ in range(get_i64(words + 48) * thread):  # late: the pass may be over, and the next one prepared
        cpu_relax()
    tag, count = tag_of(generation), get_i64(words)
    now = Taker(thread, threads, tag, 8 * SECTIONS)
    counters, done, values = get_i64(words + 8), get_i64(words + 16), get_i64(words + 24)
    if not is_current(shared, generation):
        return
    for section in range(SECTIONS):
        turn = taken = 0
        while True:
            turn, first, last = take_next(counters + 8 * section, now, turn, count, 1, 1)
            if first == last:
                break
            for _ in range(50 * (first % 3)):  # slow: nobody may go on without this piece
                cpu_relax()
            for piece in range(first, last):
                # The neighbour's value: a section that began too early would find an old one.
                source = values + 8 * ((piece + 1) % count)
                before = get_i64(source + 8 * MOST * ((section + 1) % 2)) if section else get_i64(words + 32)
                put_i64(values + 8 * (piece + MOST * (section % 2)), before + 1)
                atomic_add(words + 40, 1)
            taken += last - first
        if taken:
            count_done(done + 8 * section, tag, taken)
        await_done(done + 8 * section, tag, count, 0, 0)
        if not is_current(shared, generation):
            return


@jit(entry=True)
def serve(shared, thread, threads, words):
    if thread == 0:
        generation = begin_pass(shared, threads)
        _sections(shared, thread, threads, generation, words)
        end_pass(shared)
        return
    generation = 0
    while True:
        generation = await_pass(shared, thread, generation)
        if generation < 0:
            return
        _sections(shared, thread, threads, generation, words)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_passes_of_changing_size_with_more_threads_than_cores(threads: int) -> None:
    libc = ctypes.CDLL(None)
    memory = np.zeros(shared_bytes(threads) + LINE, np.uint8)
    shared = memory[-address(memory) % LINE :]
    semaphores = [address(shared) + WORKERS + 2 * LINE * thread + LINE for thread in range(1, threads)]
    for semaphore in semaphores:
        libc.sem_init(ctypes.c_void_p(semaphore), 0, 0)
    counters, done = np.zeros((threads, SECTIONS), np.int64), np.zeros(SECTIONS, np.int64)
    values = np.zeros((2, MOST), np.int64)
    words = np.array([1, address(counters), address(done), address(values), 0, 0, 0], np.int64)
    serve.dispatcher.compile("void(int64, int64, int64, int64)")
    workers = [
        threading.Thread(target=serve, args=(address(shared), thread, threads, address(words)), daemon=True)
        for thread in range(1, threads)
    ]
    for worker in workers:
        worker.start()
    rng = np.random.default_rng(0)
    for number in range(1000):
        count = int(rng.integers(1, MOST))
        words[0], words[4], words[5], words[6] = count, 100 * number, 0, rng.choice([0, 10, 100])
        serve(address(shared), 0, threads, address(words))
        assert words[5] == SECTIONS * count
        assert (values[(SECTIONS - 1) % 2, :count] == 100 * number + SECTIONS).all()
    numbers = shared[:WORKERS].view(np.int64)
    numbers[STOP // 8] = 1
    numbers[GENERATION // 8] += 1
    for semaphore, worker in zip(semaphores, workers, strict=True):
        libc.sem_post(ctypes.c_void_p(semaphore))
        worker.join(30)
        assert not worker.is_alive()
