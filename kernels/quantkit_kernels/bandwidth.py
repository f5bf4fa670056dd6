"""How fast this machine reads memory: the ceiling of decoding, measured, not looked up.

All threads read their part of a buffer far larger than the caches, in order, with plain vector loads. Not a benchmark
of quantkit: `quantkit.benchmark` puts its figures beside this one.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from .jit import jit
from .simd import load_i32, put_i64, sum_lanes_i32

SIZE = 512 << 20
"""Bytes read by all threads together."""
PIECE = 1 << 20


@jit(entry=True)
def _read(address, size, result):
    """Read `size` bytes, a multiple of 256, and store something that depends on all of them."""
    a = b = c = d = load_i32(address)
    for _ in range(size >> 8):
        a = a + load_i32(address) + load_i32(address + 32)
        b = b + load_i32(address + 64) + load_i32(address + 96)
        c = c + load_i32(address + 128) + load_i32(address + 160)
        d = d + load_i32(address + 192) + load_i32(address + 224)
        address += 256
    put_i64(result, sum_lanes_i32(a + b + c + d))


def read_bandwidth(threads: int, repeats: int = 5) -> float:
    """Return the best of `repeats` measurements, in bytes per second, of `threads` threads reading at once."""
    memory = np.ones(SIZE // threads * threads, np.uint8)
    results = np.zeros(8 * threads, np.int64)
    share = len(memory) // threads & ~255
    _read(memory.ctypes.data, PIECE, results.ctypes.data)
    gate = threading.Barrier(threads + 1)

    def work(thread: int) -> None:
        for _ in range(repeats):
            gate.wait()
            _read(memory.ctypes.data + thread * share, share, results.ctypes.data + 64 * thread)
            gate.wait()

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    best = float("inf")
    for _ in range(repeats):
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        best = min(best, time.perf_counter() - start)
    for worker in workers:
        worker.join()
    return share * threads / best
