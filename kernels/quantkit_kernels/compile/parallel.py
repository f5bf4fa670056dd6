"""Compiling beside: entries that are not on disk yet are compiled by several processes, which leave them there.

numba compiles under a lock of its own, and LLVM is called under another, so threads would wait for each other. What
fails in a process, for lack of memory perhaps, is missing afterwards, and is compiled by whoever asks for its address.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import quantkit_kernels
from quantkit_kernels.compile.folder import kernel_folder
from quantkit_kernels.compile.jit import Kernel
from quantkit_kernels.compile.loading import file_of
from quantkit_kernels.simd import ISA

logger = logging.getLogger(__name__)

MOST_PROCESSES = 4
"""Each takes 250 MB, and half a second until numba is imported; attention alone takes half of a program's time."""
_START = "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); from {} import main; main()"


@functools.cache
def announce() -> None:
    """Say once, at level INFO, why the start is slow."""
    how_often = "once" if kernel_folder(ISA) else "at each start"
    logger.info("compiling kernels; this happens %s and takes 10 to 20 seconds", how_often)


def compile_beside(kernels: Sequence[Kernel], processes: int) -> None:
    """Compile the entries that are not on disk, if there are several and they can be kept.

    Parameters
    ----------
    kernels : sequence of Kernel
        Entries that are called by their address, those first that take long.
    processes : int
        Processes that may compile at once.
    """
    missing = [kernel for kernel in kernels if (file := file_of(kernel.py_func)) and not file.exists()]
    count = min(processes, len(missing), MOST_PROCESSES)
    if count < 2:
        return
    announce()
    waiting = iter(missing)
    workers: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(count) as threads:
        try:
            with contextlib.suppress(OSError):  # no more processes: those that run compile everything
                workers += (_start() for _ in range(count))
            list(threads.map(lambda worker: _feed(worker, waiting), workers))
        finally:  # after an interruption too
            for worker in workers:
                worker.kill()
                worker.communicate()


def _start() -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", _START.format(__name__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    _send(worker, json.dumps([str(place) for place in sys.path]))
    _send(worker, str(kernel_folder(ISA)))
    return worker


def _feed(worker: subprocess.Popen[str], waiting: Iterator[Kernel]) -> None:
    """Let a process compile one entry after the other, until none waits or the process ends."""
    assert worker.stdout is not None
    for kernel in waiting:
        _send(worker, f"{kernel.py_func.__module__} {kernel.py_func.__name__}")
        if not worker.stdout.readline():
            return


def _send(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, which the reader will see
        worker.stdin.write(f"{line}\n")
        worker.stdin.flush()


def main() -> None:
    """Be such a process: compile the entries that standard input names, a line each, and answer each with a line."""
    folder = Path(sys.stdin.readline().removesuffix("\n"))
    quantkit_kernels.cache_folder = lambda _: folder
    for line in sys.stdin:
        module, name = line.split()
        _ = getattr(import_module(module), name).address
        sys.stdout.write("\n")
        sys.stdout.flush()
