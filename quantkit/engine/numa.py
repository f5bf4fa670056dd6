"""Memory nodes: machines with several sockets have memory at each, and threads read that of others more slowly.

Weights are mapped from files, and a page of a file lies where the thread ran that first read it, for all processes and
as long as the system keeps it in memory. Often that is one node, whose bandwidth then is all there is. `interleave`
moves such pages, so that all nodes are read at once, wherever threads run. It pins no threads; affinity is the user's.

Linux alone. Setting a policy (`numactl --interleave=all`) does the same for files that are not in memory yet, and
nothing for those that are.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.machine import ROOT, numbers, read
from quantkit.errors import OptionError

logger = logging.getLogger(__name__)

POLICIES = ("interleave",)
BLOCK = 64 * 1024
"""Bytes of a file that lie on one node: a matrix has many, so that threads in one matrix read from all nodes."""
PAGES_AT_ONCE = 4096
_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}
"""Number of the system call; C libraries leave it to libnuma."""
_MPOL_MF_MOVE = 2


def memory_nodes(root: Path = ROOT) -> list[int]:
    """Return the nodes with memory that this process may use; `[0]` where the system doesn't say."""
    allowed = read(root / "proc/self/status").partition("Mems_allowed_list:")[2].partition("\n")[0]
    present = read(root / "sys/devices/system/node/has_memory")
    return sorted(numbers(present) & numbers(allowed)) or [0]


def interleave(arrays: Iterable[NDArray[Any]], nodes: Sequence[int]) -> None:
    """Let the pages of arrays lie on several nodes in turn, `BLOCK` bytes on each.

    They are read for it, if they are not in memory yet. Pages that other processes have mapped stay where they are, and
    a warning says how many.

    Raises
    ------
    OptionError
        The system does not move pages, or does not let this process do it.
    """
    if len(nodes) < 2:
        logger.info("this machine has one memory node: nothing to interleave")
        return
    total = unmoved = 0
    for array in arrays:
        pages = _pages(array)
        targets = np.array(nodes, np.int32)[pages // BLOCK % len(nodes)]
        for first in range(0, len(pages), PAGES_AT_ONCE):
            part = slice(first, first + PAGES_AT_ONCE)
            places = _move(pages[part], targets[part])
            total, unmoved = total + len(places), unmoved + int(np.count_nonzero(places != targets[part]))
    if unmoved:
        logger.warning(
            "%.0f %% of the weights stay on their memory node: other processes use them", 100 * unmoved / total
        )


def _pages(array: NDArray[Any]) -> NDArray[np.int64]:
    """Addresses of the pages that hold an array; each has been read."""
    size, address = mmap.PAGESIZE, int(array.ctypes.data)
    flat = array.reshape(-1).view(np.uint8)
    np.bitwise_xor.reduce(np.append(flat[::size], flat[-1:]))
    return np.arange(address // size * size, address + flat.size, size, dtype=np.int64)


def _move(pages: NDArray[np.int64], targets: NDArray[np.int32]) -> NDArray[np.int32]:
    """Move pages to nodes; return where they are then, or the negative number of an error."""
    number = _MOVE_PAGES.get(platform.machine())
    if number is None or sys.platform != "linux":
        raise OptionError("numa: this system moves no memory between nodes")
    libc = ctypes.CDLL(None, use_errno=True)
    places = np.full(len(pages), -errno.EBUSY, np.int32)
    addresses = (ctypes.c_void_p(array.ctypes.data) for array in (pages, targets, places))
    failed = libc.syscall(ctypes.c_long(number), 0, ctypes.c_ulong(len(pages)), *addresses, _MPOL_MF_MOVE)
    if failed < 0:
        raise OptionError(f"numa: the system does not let this process move memory: {os.strerror(ctypes.get_errno())}")
    return places
