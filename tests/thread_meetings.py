"""Do the threads of a pass ever touch the same bytes without a barrier in between?

Found out the slow way, byte by byte, from the steps of a plan alone: nothing runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.lowering import Plan
from quantkit.engine.steps import Buffer, Step

TOKENS, THREADS = 5, 2


def check(plan: Plan) -> None:
    """Assert that what a thread writes, no other has touched since the last barrier, nor written what it reads.

    Any thread may take any token of fused steps, so they change places from one fused sequence to the next.
    """
    memory = _Memory(plan)
    readers, writers = np.zeros((2, THREADS, memory.size), bool)
    sequences, left = 0, 1
    for step in plan.steps:
        left -= 1
        if not left:
            sequences, left = sequences + 1, step.fused
        if step.barrier:
            readers[:], writers[:] = False, False
        shared = step.spec.shared
        assert step.output.local < 0 or not shared, step.name
        for thread in range(THREADS):
            others = [other for other in range(THREADS) if other != thread]
            place = (thread + sequences) % THREADS
            write = memory.touched(step, step.output, place)
            read = np.zeros(memory.size, bool)
            for buffer in step.inputs:
                read |= memory.touched(step, buffer, place)
            assert not (write & (readers[others] | writers[others]).any(0)).any(), step.name
            assert not (read & writers[others].any(0)).any(), step.name
            readers[thread] |= read
            writers[thread] |= write & (not shared)
        if shared:  # afterwards any thread may have written any of it
            writers |= memory.touched(step, step.output, 0)


class _Memory:
    """Every byte that threads share: the slots of the arena, the logits, and one byte a token for each KV cache."""

    def __init__(self, plan: Plan) -> None:
        self._starts: dict[object, int] = {}
        self.size = 0
        for slot, token_bytes in enumerate(plan.slots):
            self._add(slot, token_bytes)
        for step in plan.steps:
            for buffer in (step.output, *step.inputs):
                if buffer.outside >= 0 or not buffer.token_bytes:
                    self._add(self._place(buffer), buffer.token_bytes or 1)

    def _add(self, place: object, token_bytes: int) -> None:
        if place not in self._starts:
            self._starts[place] = self.size
            self.size += TOKENS * token_bytes

    def _place(self, buffer: Buffer) -> object:
        if buffer.outside >= 0:
            return "outside", buffer.outside
        return buffer.slot if buffer.token_bytes else buffer

    def touched(self, step: Step, buffer: Buffer, place: int) -> NDArray[np.bool_]:
        """The bytes of a buffer that the thread at a place among the others touches in a step."""
        touch = np.zeros(self.size, bool)
        if buffer.local < 0:  # a thread's own memory meets nobody
            whole = step.spec.shared or buffer in step.scattered
            rows = TOKENS * buffer.per_token
            mine = range(rows) if whole else range(rows * place // THREADS, rows * (place + 1) // THREADS)
            row_bytes = buffer.row_bytes or 1
            for row in mine:
                begin = self._starts[self._place(buffer)] + row * row_bytes
                touch[begin : begin + row_bytes] = True
        return touch
