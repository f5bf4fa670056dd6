"""The state of a sequence's recurrent layers, and what brings it back to an earlier token.

A state has one size however long its text is, and each token changes all of it, so a sequence that is cut back needs an
earlier state. It keeps one, where it was told that it may be cut back to (`keep`), and runs the tokens behind that once
more, along with those that come next; without one, all of its text. Nothing is copied or cleared here: a pass does that
as it advances states (`quantkit_kernels.interpreter.recurrent`). `kv_cache.py` has the sequences, `model.py` runs them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.huge_pages import ALIGNMENT


class StatePool:
    """Hands out memory for states of `nbytes`, and keeps what sequences give back. Its users hold a lock."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> NDArray[np.uint8]:
        """Return memory; what earlier sequences left in it is still there."""
        if self._free:
            return self._free.pop()
        memory = np.empty(self.nbytes + ALIGNMENT, np.uint8)
        return memory[-memory.ctypes.data % ALIGNMENT :][: self.nbytes]

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Keep memory for the next state."""
        self._free.append(memory)


class Advance(NamedTuple):
    """How a pass advances a state: fields of `quantkit_kernels.interpreter.layout.CHUNK`."""

    state: int
    fresh: bool
    kept: int
    ahead: int


STATELESS = Advance(0, False, 0, 0)
"""Of a sequence without recurrent layers."""


class SequenceState:
    """The state of one sequence.

    Attributes
    ----------
    length : int
        Tokens that it has taken in; those that the sequence has beyond are `behind`.
    """

    def __init__(self, pool: StatePool) -> None:
        self.length = 0
        self._pool = pool
        self._ids: list[int] = []
        """Of all tokens of the sequence."""
        self._state: NDArray[np.uint8] | None = None
        self._kept: NDArray[np.uint8] | None = None
        """An earlier state, of `_kept_length` tokens; -1: there is none, though there may be its memory."""
        self._kept_length = -1
        self._keep = -1
        """Where a state is to be kept, when a pass comes by."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(memory.nbytes for memory in (self._state, self._kept) if memory is not None)

    @property
    def behind(self) -> list[int]:
        """Tokens of the sequence that it has not taken in: the next pass begins with them."""
        return self._ids[self.length :]

    def keep(self, length: int) -> None:
        """Keep the state that it has at `length` tokens, for `truncate`, in place of any other."""
        self._keep = length or -1  # the beginning needs no state

    def begin(self, tokens: int) -> Advance:
        """Return how the next pass, of `tokens` tokens, is to advance it."""
        if self._state is None:
            self._state = self._pool.take()
        kept, ahead = tokens, self._state
        if self.length <= self._keep < self.length + tokens:
            kept = self._keep - self.length
            ahead = self._pool.take() if self._kept is None else self._kept
            self._kept, self._kept_length = ahead, -1
        return Advance(self._state.ctypes.data, self.length == 0, kept, ahead.ctypes.data)

    def advance(self, ids: list[int]) -> None:
        """Take notice that the pass is over, and of which tokens it was."""
        if self.length <= self._keep < self.length + len(ids):
            self._state, self._kept, self._kept_length = self._kept, self._state, self._keep
        del self._ids[self.length :]
        self._ids += ids
        self.length += len(ids)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`: go back to the kept state, or the beginning, if need be."""
        del self._ids[length:]
        if length < self._kept_length:
            self._kept_length = -1
        if length < self.length and self._kept_length >= 0:
            self._state, self._kept = self._kept, self._state
            self.length, self._kept_length = self._kept_length, -1
        elif length < self.length:
            self.length = 0

    def close(self) -> None:
        """Forget everything and give the memory back."""
        for memory in (self._state, self._kept):
            if memory is not None:
                self._pool.give_back(memory)
        self._state = self._kept = None
        self._ids, self.length, self._kept_length, self._keep = [], 0, -1, -1
