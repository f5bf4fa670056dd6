"""The KV cache: pages of positions, and the sequences that own them.

A page holds `PAGE` consecutive positions of one sequence for all layers; how its bytes are laid out is the business of
`quantkit_kernels.attention.pages`, which is told addresses. `model.py` makes room before a pass; nothing is copied when
a sequence grows.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass, field
from itertools import accumulate
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import GenerationError
from quantkit_kernels.attention.pages import PAGE, layer_bytes

ALIGNMENT = 64
SLAB_PAGES = 16
HUGE_PAGE = 2 << 20


class CacheLayer(NamedTuple):
    """What one layer keeps of a position: keys and values of `kv_heads` heads of `head_dim` channels."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class CacheShape:
    """What a position needs: its layers, which may differ, and the kind of numbers: `f16`, `int8`, `f32`."""

    kind: str
    layers: tuple[CacheLayer, ...]

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer in a page."""
        return tuple(layer_bytes(self.kind, *layer) for layer in self.layers)

    @property
    def layer_offsets(self) -> tuple[int, ...]:
        """Bytes from the start of a page to each layer."""
        return tuple(accumulate(self.layer_bytes, initial=0))[:-1]

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of `PAGE` positions."""
        return sum(self.layer_bytes)

    @property
    def position_bytes(self) -> float:
        """Bytes of one position."""
        return self.page_bytes / PAGE

    def nbytes(self, positions: int) -> int:
        """Bytes of the pages that hold so many positions of one sequence."""
        return -(-positions // PAGE) * self.page_bytes


class PagePool:
    """Hands out zeroed or used pages, and keeps those that sequences give back.

    Memory comes in slabs of `SLAB_PAGES`, on huge pages where the system has them: attention walks through all of the
    cache for each token, and would leave a small page after a few keys. Only what is written takes memory.
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> NDArray[np.uint8]:
        """Return a page; what earlier sequences left in it is never read."""
        if not self._free:
            self._free = self._slab()
        return self._free.pop()

    def _slab(self) -> list[NDArray[np.uint8]]:
        """New pages, the first one last."""
        size = self.shape.page_bytes
        stride = -(-size // ALIGNMENT) * ALIGNMENT
        memory = mmap.mmap(-1, SLAB_PAGES * stride + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        slab = np.frombuffer(memory, np.uint8)
        first = -slab.ctypes.data % HUGE_PAGE
        return [slab[first + page * stride :][:size] for page in reversed(range(SLAB_PAGES))]

    def give_back(self, pages: list[NDArray[np.uint8]]) -> None:
        """Keep pages for the next sequence."""
        self._free += pages


@dataclass(eq=False)
class Sequence:
    """One text in the making: the keys and values of its tokens so far.

    Close it, or use it as a context manager, to hand its memory to the next sequence.

    Attributes
    ----------
    length : int
        Tokens in the cache.
    """

    pool: PagePool
    limit: int
    length: int = 0
    table: NDArray[np.int64] = field(init=False)
    """Addresses of the pages, as the kernels read them."""
    address: int = field(init=False)
    """Of the table."""
    _pages: list[NDArray[np.uint8]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = np.zeros(-(-self.limit // PAGE), np.int64)
        self.address = int(self.table.ctypes.data)

    @property
    def nbytes(self) -> int:
        """Bytes of cache that the sequence holds."""
        return len(self._pages) * self.pool.shape.page_bytes

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more; raises `GenerationError` when the context does not hold them."""
        needed = self.length + tokens
        if needed > self.limit:
            raise GenerationError(
                f"{needed} tokens do not fit the context of {self.limit} ({self.length} are in it); "
                "shorten the prompt or ask for fewer tokens"
            )
        while len(self._pages) * PAGE < needed:
            page = self.pool.take()
            self.table[len(self._pages)] = page.ctypes.data
            self._pages.append(page)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; raises `ValueError` when there are not so many.

        Their pages stay for what comes next: what lies beyond the length is never read.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a sequence of {self.length} tokens cannot be cut to {length}")
        self.length = length

    def close(self) -> None:
        """Forget the tokens and give the pages back."""
        self.pool.give_back(self._pages)
        self._pages = []
        self.length = 0

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
