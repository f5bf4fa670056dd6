"""Memory for logits: written again when nobody holds it, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quantkit.engine.logits_rows import KEPT, LogitsRows

WAYS_TO_HOLD: dict[str, Callable[[Any], Any]] = {
    "rows": lambda rows: rows,
    "a row": lambda rows: rows[0],
    "a part of a row": lambda rows: rows[0][3:5],
    "memory": lambda rows: memoryview(rows),
    "an iterator": lambda rows: iter(rows),
}


@pytest.mark.parametrize("hold", WAYS_TO_HOLD.values(), ids=WAYS_TO_HOLD)
def test_what_is_held_is_not_handed_out_again(hold: Callable[[Any], Any]) -> None:
    memory = LogitsRows(20, 32)
    held = [hold(memory.take(1).visible) for _ in range(5)]
    addresses = {memory.take(1).address for _ in range(3)}
    assert len(addresses) == 1
    del held
    assert len({memory.take(1).address for _ in range(3)}) == 1


def test_what_is_let_go_of_is_handed_out_again() -> None:
    memory = LogitsRows(20, 32)
    first = memory.take(1).visible
    found = set()
    for _ in range(10):  # as a loop over tokens: the last row is held while the next is written
        second = memory.take(1)
        found.add(second.address)
        first = second.visible[0]
    assert first.shape == (20,)
    assert len(found) == KEPT


def test_several_rows_are_always_new() -> None:
    memory = LogitsRows(20, 32)
    rows = [memory.take(3) for _ in range(4)]
    assert len({each.address for each in rows}) == 4
    assert {each.visible.shape for each in rows} == {(3, 20)}
    assert all(each.address == each.memory.ctypes.data == each.visible.ctypes.data for each in rows)
