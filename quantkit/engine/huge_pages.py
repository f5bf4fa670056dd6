"""Memory on huge pages, and weights that are copied into it.

A mapped file lies in pages of 4 KB, anywhere in memory. The processor looks each of them up, and its prefetchers stop
at their ends. From pages of 2 MB, SmolLM2-135M decodes 1.1 to 1.3 times as fast. The copy is this process's own: where
it would leave too little memory, the file stays mapped. `kv_cache.py` takes its pages from here, too.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.machine import ROOT, free_memory, read
from quantkit.formats.source import ModelSource
from quantkit.tensor import Tensor
from quantkit_kernels.blocks import nbytes

HUGE_PAGE = 2 << 20
LARGEST_SHARE = 1 / 2
"""Of the free memory, that a copy of the weights may take."""
ALIGNMENT = 64


def aligned(size: int) -> int:
    """Round bytes up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def huge_memory(size: int) -> NDArray[np.uint8]:
    """Return zeroed bytes from the beginning of a page on, on huge pages where the system has them.

    Only what is written takes memory.
    """
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    return whole[-whole.ctypes.data % HUGE_PAGE :][:size]


def is_worth_a_copy(size: int, root: Path = ROOT) -> bool:
    """Whether the system has huge pages, weights of so many bytes fill one, and a copy leaves memory for others."""
    enabled = read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    if "[always]" not in enabled and "[madvise]" not in enabled:
        return False
    return HUGE_PAGE <= size <= LARGEST_SHARE * free_memory(root)


class CopiedWeights:
    """The weights of a packed model, read into memory on huge pages.

    Parameters
    ----------
    source : ModelSource
    names : collection of str
        The tensors to read.
    threads : int
        Threads that read.

    Raises
    ------
    QuantkitError
        The file was truncated.
    """

    def __init__(self, source: ModelSource, names: Collection[str], threads: int) -> None:
        self.config: Mapping[str, Any] = source.config
        # Large ones first: each is for a moment in memory twice, and little else is then.
        rooms = {name: _room(source, name) for name in names}
        order = sorted(rooms, key=lambda name: -rooms[name])
        ends = np.cumsum([rooms[name] for name in order]).tolist()
        memory = huge_memory(ends[-1])

        def copied(name: str, end: int) -> Tensor:
            tensor = source.tensor(name, copy=True)
            place = memory[end - rooms[name] : end]
            data, scales = _placed(tensor.data, place), tensor.row_scales
            if scales is not None:
                scales = _placed(scales, place[aligned(data.nbytes) :])
            return Tensor(tensor.kind, tensor.shape, data, scales)

        with ThreadPoolExecutor(threads) as pool:
            self._tensors = dict(zip(order, pool.map(copied, order, ends), strict=True))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in memory."""
        return self._tensors[name]


def _room(source: ModelSource, name: str) -> int:
    """Bytes for a tensor whose data and row scales begin on multiples of `ALIGNMENT`."""
    spec = source.spec(name)
    return aligned(nbytes(spec.kind, spec.shape)) + ALIGNMENT


def _placed(array: NDArray[Any], place: NDArray[np.uint8]) -> NDArray[Any]:
    """Copy an array to the beginning of a place; returns it there, read-only."""
    copy = place[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy
