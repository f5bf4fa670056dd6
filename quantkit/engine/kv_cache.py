"""The KV cache: pages of positions, and the sequences that own them.

A page holds `PAGE` consecutive positions of one sequence for all layers; how its bytes are laid out is the business of
`quantkit_kernels.attention.pages`, which is told addresses. `model.py` makes room before a pass; nothing is copied when
a sequence grows. What recurrent layers keep of a sequence beside it is in `sequence_state.py`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.huge_pages import aligned, huge_memory
from quantkit.engine.sequence_state import SequenceState, StatePool
from quantkit.errors import GenerationError
from quantkit_kernels.attention.pages import PAGE, layer_bytes
from quantkit_kernels.rows.choice import Chooser

SLAB_PAGES = 16


class CacheLayer(NamedTuple):
    """What one layer keeps of a position: keys and values of `kv_heads` heads of so many channels."""

    kv_heads: int
    head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class CacheShape:
    """What a position needs: its layers, which may differ, and the kind of numbers: `int16`, `int8`, `f32`."""

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
        self.lock = threading.RLock()
        """Held by whoever runs a pass over these pages, or changes the sequences that own them."""
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> NDArray[np.uint8]:
        """Return a page; what earlier sequences left in it is never read. The caller holds the lock."""
        if not self._free:
            self._free = self._slab()
        return self._free.pop()

    def _slab(self) -> list[NDArray[np.uint8]]:
        """New pages, the first one last."""
        size = self.shape.page_bytes
        stride = aligned(size)
        slab = huge_memory(SLAB_PAGES * stride)
        return [slab[page * stride :][:size] for page in reversed(range(SLAB_PAGES))]

    def give_back(self, pages: list[NDArray[np.uint8]]) -> None:
        """Keep pages for the next sequence. The caller holds the lock."""
        self._free += pages


class Sequence:
    """One text in the making: keys, values and states of its tokens so far. `Model.new_sequence` makes it.

    Close it, or use it as a context manager, to hand its memory to the next sequence.

    Parameters
    ----------
    pool : PagePool
        Of the model.
    limit : int
        Most tokens that it may hold.
    states : StatePool, optional
        Of a model with recurrent layers.
    """

    def __init__(self, pool: PagePool, limit: int, states: StatePool | None = None) -> None:
        self.pool = pool
        self.state = SequenceState(states) if states else None
        self.choice: Chooser | None = None
        """What chooses the token behind the last one of each `Model.forward`; None: nothing, the caller does."""
        self._limit = limit
        self._length = 0
        self._pages: list[NDArray[np.uint8]] = []
        self._table = np.zeros(-(-limit // PAGE), np.int64)
        self.address = int(self._table.ctypes.data)
        """Of the table of page addresses, as the kernels read it."""

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self._length

    @property
    def behind(self) -> int:
        """Tokens of the text that the next pass computes once more, since `truncate` went back too far."""
        return len(self.state.behind) if self.state else 0

    @property
    def nbytes(self) -> int:
        """Bytes of cache, and of states, that the sequence holds."""
        return len(self._pages) * self.pool.shape.page_bytes + (self.state.nbytes if self.state else 0)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more; raises `GenerationError` when the context does not hold them.

        The caller holds the pool's lock until the tokens are in.
        """
        needed = self._length + tokens
        if needed > self._limit:
            raise GenerationError(
                f"{needed} tokens do not fit the context of {self._limit} ({self._length} are in it); "
                "shorten the prompt or ask for fewer tokens"
            )
        while len(self._pages) * PAGE < needed:
            page = self.pool.take()
            self._table[len(self._pages)] = page.ctypes.data
            self._pages.append(page)

    def take_behind(self) -> list[int]:
        """Forget the tokens that must be computed once more, and return them. The caller holds the pool's lock."""
        ids = self.state.behind if self.state else []
        self._length -= len(ids)
        return ids

    def advance(self, ids: list[int]) -> None:
        """Take notice of tokens that a pass has computed, which holds the pool's lock."""
        self._length += len(ids)
        if self.state:
            self.state.advance(ids)

    def keep_state(self, length: int) -> None:
        """Make it cheap to come back to `length` tokens, or a few more, by `truncate`; not yet computed ones count.

        Only recurrent layers need it: their state is kept there when a pass comes by, in place of any that was kept
        before. Without it `truncate` is right as well, but the next pass computes the text anew.
        """
        with self.pool.lock:
            if length < self._length:
                raise ValueError(f"a sequence of {self._length} tokens is past {length}")
            if self.state:
                self.state.keep(length)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`; raises `ValueError` when there are not so many.

        Their pages stay for what comes next: what lies beyond the length is never read.
        """
        with self.pool.lock:
            if not 0 <= length <= self._length:
                raise ValueError(f"a sequence of {self._length} tokens cannot be cut to {length}")
            self._length = length
            if self.state:
                self.state.truncate(length)

    def close(self) -> None:
        """Forget the tokens and give the pages back."""
        with self.pool.lock:
            self.pool.give_back(self._pages)
            self._pages = []
            self._length = 0
            if self.state:
                self.state.close()

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
