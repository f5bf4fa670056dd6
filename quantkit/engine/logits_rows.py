"""Memory for the logits that a caller gets: a row that nobody holds any more is written again.

Callers keep logits as long as they like, so each call of `Model.forward` needs rows of its own. To allocate one, and
to ask numpy for its address, takes longer than all else that Python does for a token: the caches hold weights by then.
"""

from __future__ import annotations

import ctypes
from sys import getrefcount
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEPT = 2
"""Rows to choose from: a caller mostly holds the last one while the next is written."""


class Rows(NamedTuple):
    """Memory of a caller's rows."""

    memory: NDArray[np.float32]
    """f32 `[rows, stride]`; all views of it hold a reference to it."""
    visible: NDArray[np.float32]
    """f32 `[rows, columns]`: what the caller gets."""
    address: int


class LogitsRows:
    """Hands out memory for rows of `columns` numbers, `stride` numbers apart. Its users hold a lock."""

    def __init__(self, columns: int, stride: int) -> None:
        self.row_bytes = 4 * stride
        self._columns, self._stride = columns, stride
        self._kept = [self._new(1) for _ in range(KEPT)]
        first = self._kept[0]
        self._unused = getrefcount(first.memory) + getrefcount(first.visible)

    def take(self, rows: int) -> Rows:
        """Return memory for so many rows; what was there before is still in it."""
        if rows > 1:
            return self._new(rows)
        for kept in self._kept:
            if getrefcount(kept.memory) + getrefcount(kept.visible) == self._unused:
                return kept
        self._kept = [self._new(1), *self._kept[:-1]]
        return self._kept[0]

    def _new(self, rows: int) -> Rows:
        memory = np.empty((rows, self._stride), np.float32)
        return Rows(memory, memory[:, : self._columns], ctypes.addressof(ctypes.c_char.from_buffer(memory.data)))
