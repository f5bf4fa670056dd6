"""Which buffers of a plan share memory: the arena of a pass.

A value takes the memory of another only behind a barrier, so that sharing memory never asks for one; or in place, row
by row. What lives inside of fused token steps alone needs one row for each thread; what an output is computed from in
place lies where it does, in the caller's memory. `lowering.py` makes the steps and their barriers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from quantkit.engine.steps import Buffer, Step


class _Lives:
    """When the buffers of some steps are written and read."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.section = list(accumulate(step.barrier for step in steps))
        """How many barriers stand before each step, its own included."""
        self.last_use: dict[Buffer, int] = {}
        self._readers: dict[Buffer, list[int]] = {}
        self._scattering: set[int] = set()
        """The steps that read other rows than the one that they write."""
        self._fusion: list[int] = []
        """For each step the first of those that it is fused with."""
        for index, step in enumerate(steps):
            joined = index and steps[index - 1].fused > 1
            self._fusion.append(self._fusion[-1] if joined else index)
            self.last_use |= dict.fromkeys((step.output, *step.inputs), index)
            if step.scattered:
                self._scattering.add(index)
            for buffer in step.inputs:
                self._readers.setdefault(buffer, []).append(index)

    def _is_past(self, reader: int, index: int) -> bool:
        """Whether a step is done with a token's row when step `index` comes to the row."""
        if self.section[reader] < self.section[index] or reader == index:
            return True
        return reader >= self._fusion[index] and reader not in self._scattering

    def overwritable(self, index: int, step: Step) -> list[Buffer]:
        """The inputs whose rows a step may overwrite: it reads them last, and no other thread may still be at them."""
        named = zip(step.spec.inputs, step.inputs, strict=True)
        return [
            x
            for name, x in named
            if name in step.spec.in_place
            and (x.row_bytes, x.per_token) == (step.output.row_bytes, step.output.per_token)
            and self.last_use[x] == index
            and all(self._is_past(reader, index) for reader in self._readers[x])
        ]


def assign_memory(steps: Sequence[Step]) -> tuple[list[int], int]:
    """Give each buffer its memory; returns the slots' bytes per token and the bytes of a thread's own."""
    lives = _Lives(steps)
    _place_outputs(steps, lives)
    slots: list[int] = []
    free_from: list[int] = []
    """For each slot the first section in which it may be taken."""
    local = local_bytes = 0
    for index, step in enumerate(steps):
        output = step.output
        local = local if index and steps[index - 1].fused > 1 else 0
        if not output.token_bytes or output.slot >= 0 or output.outside >= 0:
            continue
        if lives.last_use[output] < index + step.fused and not step.spec.shared:
            output.local = local
            local += output.row_bytes
            local_bytes = max(local_bytes, local)
            continue
        in_place = [x for x in lives.overwritable(index, step) if x.slot >= 0]
        if in_place:
            output.slot = in_place[0].slot
        else:
            free = [slot for slot, first in enumerate(free_from) if first <= lives.section[index]]
            output.slot = _take_slot(slots, free, output.token_bytes)
            free_from[len(free_from) :] = [0] * (len(slots) - len(free_from))
        free_from[output.slot] = lives.section[lives.last_use[output]] + 1
    return slots, local_bytes


def _place_outputs(steps: Sequence[Step], lives: _Lives) -> None:
    """Let what an output is computed from in place lie where it does."""
    for index, step in reversed(list(enumerate(steps))):
        if step.output.outside >= 0:
            for x in [each for each in lives.overwritable(index, step) if each.outside < 0][:1]:
                x.outside = step.output.outside


def _take_slot(slots: list[int], free: list[int], size: int) -> int:
    """The smallest free slot that is large enough, else the largest one, grown, else a new one."""
    if not free:
        slots.append(size)
        return len(slots) - 1
    fitting = [slot for slot in free if slots[slot] >= size]
    slot = min(fitting, key=slots.__getitem__) if fitting else max(free, key=slots.__getitem__)
    slots[slot] = max(slots[slot], size)
    return slot
