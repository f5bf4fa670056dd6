"""Bytes go where they save most, and as near to the best choice as a single step."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from quantkit.quantization.allocation.assignment import Option, assign

UNITS = [
    [Option("int4", 10, 1.0), Option("int8", 20, 0.1)],  # saves 0.09 a byte
    [Option("int4", 10, 2.0), Option("int8", 30, 0.0)],  # 0.1
    [Option("int4", 10, 0.5), Option("int8", 15, 0.4)],  # 0.02
]


def kinds(budget: int) -> list[str]:
    return [option.kind for option in assign(UNITS, budget)]


def test_what_saves_most_for_a_byte_comes_first() -> None:
    assert kinds(30) == ["int4", "int4", "int4"]
    assert kinds(50) == ["int4", "int8", "int4"]
    assert kinds(60) == ["int8", "int8", "int4"]
    assert kinds(10_000) == ["int8", "int8", "int8"]


def test_a_unit_goes_from_kind_to_kind() -> None:
    unit = [Option("int4", 45, 1.0), Option("int5", 55, 0.25), Option("int8", 83, 0.01)]  # 0.075, then 0.0086 a byte
    light = [Option(kind, nbytes, 0.1 * cost) for kind, nbytes, cost in unit]
    found = [[option.kind for option in assign([light, unit], budget)] for budget in (90, 100, 110, 138, 166)]
    assert found == [["int4", "int4"], ["int4", "int5"], ["int5", "int5"], ["int5", "int8"], ["int8", "int8"]]


def test_smaller_steps_take_what_a_larger_one_leaves() -> None:
    assert kinds(40) == ["int8", "int4", "int4"]
    assert kinds(36) == ["int4", "int4", "int8"]


def test_a_large_step_is_weighed_against_those_that_took_its_bytes() -> None:
    small = [Option("int4", 1, 0.1), Option("int8", 3, 0.0)]  # saves 0.05 a byte
    large = [Option("int4", 10, 1.0), Option("int8", 40, 0.0)]  # 0.033
    assert [option.kind for option in assign([small, large], 41)] == ["int4", "int8"]
    assert [option.kind for option in assign([small, large], 40)] == ["int8", "int4"]
    assert [option.kind for option in assign([small, large], 43)] == ["int8", "int8"]


def test_a_kind_above_the_hull_is_no_stop() -> None:
    options = [Option("int4", 10, 1.0), Option("bad", 11, 0.99), Option("int8", 12, 0.0), Option("worse", 20, 0.0)]
    assert [assign([options], budget)[0].kind for budget in (10, 11, 12, 99)] == ["int4", "int4", "int8", "int8"]


def test_ties_go_to_the_first() -> None:
    unit = [Option("int4", 10, 1.0), Option("int8", 20, 0.5)]
    assert [option.kind for option in assign([unit] * 3, 50)] == ["int8", "int8", "int4"]


options = st.builds(Option, st.just("some"), st.integers(1, 20), st.floats(0, 1))


@given(st.lists(st.lists(options, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 60))
def test_no_choice_is_better_by_more_than_a_step(units: list[list[Option]], more: int) -> None:
    budget = sum(min(option.nbytes for option in unit) for unit in units) + more
    found = assign(units, budget)
    assert sum(option.nbytes for option in found) <= budget
    choices = (choice for choice in product(*units) if sum(option.nbytes for option in choice) <= budget)
    best = min(sum(option.cost for option in choice) for choice in choices)
    spread = max(max(option.cost for option in unit) - min(option.cost for option in unit) for unit in units)
    assert sum(option.cost for option in found) <= best + spread + 1e-9
