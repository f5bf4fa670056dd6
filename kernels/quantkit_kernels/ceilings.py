"""The two ceilings of this machine, measured, not looked up: bytes read and int8 multiply-adds per second.

Decoding reads every weight once, so memory bandwidth bounds it. A prompt's tokens share each read, so the instruction
set's int8 dot product bounds them. This is not a benchmark of quantkit: `quantkit.evaluation.benchmark` compares its
figures with these. On shared machines both change with time, so a `Probe` is kept and asked again close to what it is
compared with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    TILES,
    add_section_u,
    broadcast_dwords,
    dot_u,
    load_i32,
    load_rows_bytes,
    load_scales_u,
    put_i64,
    scale_u,
    store_grid,
    sum_lanes_i32,
    to_i32,
    zero_dot_u,
    zeros_tiles,
)

READ_BYTES = 512 << 20
"""Bytes that all threads read together in one measurement: far more than the caches hold."""
DOTS = 12
"""Independent dot products in flight: enough to hide the latency of one."""
DOT_MACS = 32 * TILES
"""Multiply-adds of one dot product."""
ROUNDS = 1_000_000
"""Rounds of `DOTS` dot products by each thread in one measurement: some milliseconds. In a tenth of that, a thread that
begins a little later would take a tenth off the peak."""
CODES_BYTES = 64 * 8
"""A few registers of codes, which stay in the first-level cache."""


@jit(entry=True)
def _read(address, size, result):
    """Read `size` bytes, a multiple of 256, and store a number that depends on all of them."""
    a = b = c = d = load_i32(address)
    for _ in range(size >> 8):
        a = a + load_i32(address) + load_i32(address + 32)
        b = b + load_i32(address + 64) + load_i32(address + 96)
        c = c + load_i32(address + 128) + load_i32(address + 160)
        d = d + load_i32(address + 192) + load_i32(address + 224)
        address += 256
    put_i64(result, sum_lanes_i32(a + b + c + d))


@jit(entry=True)
def _multiply(address, rounds, result):
    """Compute `rounds * DOTS` dot products as a matrix product does: one register of codes times `DOTS` activations."""
    like = zeros_tiles(1, DOTS)
    dots, x = zero_dot_u(like), broadcast_dwords(address, 4, like)
    for i in range(rounds):
        # The codes change, or the compiler would move the work out of the loop.
        dots = dot_u(dots, load_rows_bytes(address + 64 * (i & 7), 32, like), x)
    scales = load_scales_u(address, 0, like)
    total = add_section_u(to_i32(like), dots, scales)
    store_grid(result, 0, 32 * TILES, scale_u(total, scales))


class Probe:
    """Measures the ceilings of `threads` threads at once; holds `READ_BYTES` of memory as long as it lives."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._share = READ_BYTES // threads & ~255
        self._memory = np.ones(self._share * threads, np.uint8)
        self._codes = np.full(CODES_BYTES, 3, np.uint8)
        self._results = np.zeros((threads, DOTS * 8 * TILES), np.float32)
        for kernel in (_read, _multiply):  # compiled before the first measurement
            kernel(self._codes.ctypes.data, 256, self._results.ctypes.data)

    def read_bandwidth(self, repeats: int = 3) -> list[float]:
        """Bytes per second, `repeats` times."""
        address = self._memory.ctypes.data
        shares = [(address + thread * self._share, self._share) for thread in range(self.threads)]
        return [self._share * self.threads / self._seconds(_read, shares) for _ in range(repeats)]

    def int8_peak(self, repeats: int = 3) -> list[float]:
        """Multiply-adds of int8 per second, `repeats` times."""
        shares = [(self._codes.ctypes.data, ROUNDS)] * self.threads
        macs = ROUNDS * DOTS * DOT_MACS * self.threads
        return [macs / self._seconds(_multiply, shares) for _ in range(repeats)]

    def _seconds(self, kernel: Callable[[int, int, int], None], shares: list[tuple[int, int]]) -> float:
        """Give one share to each thread, all at once; returns the time from the first start to the last end."""
        gate = threading.Barrier(len(shares))
        times = np.zeros((len(shares), 2))

        def measure(thread: int) -> None:
            gate.wait()
            times[thread, 0] = time.perf_counter()
            kernel(*shares[thread], self._results[thread].ctypes.data)
            times[thread, 1] = time.perf_counter()

        others = [threading.Thread(target=measure, args=(thread,)) for thread in range(1, len(shares))]
        for other in others:
            other.start()
        measure(0)
        for other in others:
            other.join()
        return float(times[:, 1].max() - times[:, 0].min())
