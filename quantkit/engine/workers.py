"""The threads that run passes: parked between passes, woken by the compiled code itself.

A pool is `threads - 1` Python threads that live inside `quantkit_kernels.interpreter.dispatch.participate`, without the
GIL, plus whoever calls `run`. What a pass computes is described by the words that `model.py` fills in.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.interpreter.dispatch import participate
from quantkit_kernels.interpreter.layout import PASS
from quantkit_kernels.interpreter.threads import GENERATION, LINE, STOP, WORKERS, shared_bytes

_LIBC = ctypes.CDLL(None)


class WorkerPool:
    """A pool of `threads` threads that run passes together.

    Attributes
    ----------
    threads : int
        Threads that share a pass, the caller included.
    words : ndarray
        One `quantkit_kernels.interpreter.layout.PASS`: what the next `run` does, but for how many chunks.
    closed : bool
        Whether the threads have ended.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.words = np.zeros((), PASS)
        self.words["threads"] = threads
        memory = np.zeros(shared_bytes(threads) + LINE, np.uint8)
        self._shared = memory[-memory.ctypes.data % LINE :]
        self._addresses = int(self._shared.ctypes.data), int(self.words.ctypes.data)
        self._chunks = self.words.reshape(1)["chunks"].data
        for worker in range(1, threads):
            _LIBC.sem_init(ctypes.c_void_p(_semaphore(self._shared, worker)), 0, 0)
        self._participate = _callable(participate)
        workers = [
            threading.Thread(
                target=_serve,
                args=(self._participate, worker, self._shared, self.words),
                daemon=True,
                name=f"quantkit-{worker}",
            )
            for worker in range(1, threads)
        ]
        for thread in workers:
            thread.start()
        self._stop = weakref.finalize(self, _stop, self._shared, workers)
        self.closed = False

    def run(self, chunks: int) -> None:
        """Run one pass of the program that `words` describes."""
        self._chunks[0] = chunks
        self._participate(0, *self._addresses)

    def close(self) -> None:
        """End the threads; the pool cannot run again."""
        self.closed = True
        self._stop()


def _callable(entry: Any) -> Callable[..., object]:
    """What Python calls the machine code of a kernel of 3 numbers with, without the GIL."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(entry.address)


def _serve(participate: Callable[..., object], worker: int, shared: NDArray[np.uint8], words: NDArray[np.void]) -> None:
    participate(worker, shared.ctypes.data, words.ctypes.data)


def _stop(shared: NDArray[np.uint8], workers: list[threading.Thread]) -> None:
    numbers = shared[:WORKERS].view(np.int64)
    numbers[STOP // 8] = 1
    numbers[GENERATION // 8] += 1
    for worker, thread in enumerate(workers, 1):
        _LIBC.sem_post(ctypes.c_void_p(_semaphore(shared, worker)))
        thread.join()


def _semaphore(shared: NDArray[np.uint8], worker: int) -> int:
    return shared.ctypes.data + WORKERS + 2 * LINE * worker + LINE
