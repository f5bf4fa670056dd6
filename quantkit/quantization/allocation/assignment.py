"""Which kind each unit becomes, so that the least divergence fits into a number of bytes.

Units are independent and their divergences add up. Each has a few choices, of more bytes and less divergence; those
on the lower convex hull are taken step by step, the one that saves most for a byte first. What no longer fits is left
out, and smaller steps behind it may still fit. A large step, such as a table of tokens in a small model, may have been
worth more than what took its bytes: each that did not fit is tried as the first one, too. The result is at most the
gain of a single step from the best one (https://en.wikipedia.org/wiki/Knapsack_problem, greedy on the hull). Ties go to
the unit that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Option(NamedTuple):
    """A kind that a unit may have.

    Attributes
    ----------
    kind : str
    nbytes : int
    cost : float
        Divergence that it adds, in nats.
    """

    kind: str
    nbytes: int
    cost: float


class _Step(NamedTuple):
    """A move of a unit from a choice to the next one on its hull."""

    gain: float
    """Divergence saved for a byte."""
    unit: int
    option: Option
    nbytes: int


def assign(units: Sequence[Sequence[Option]], budget: int) -> list[Option]:
    """Choose an option for each unit.

    Parameters
    ----------
    units : sequence of sequence of Option
        The options of each unit, in any order.
    budget : int
        Bytes that all units may take together, at least those of the smallest options.

    Returns
    -------
    list of Option
        One of each unit.
    """
    hulls = [_hull(options) for options in units]
    steps = sorted(_steps(hulls), key=lambda step: (-step.gain, step.unit, step.option.nbytes))
    smallest = [hull[0] for hull in hulls]
    best, blocked = _taken(steps, smallest, budget)
    for step in blocked:
        start = [*smallest[: step.unit], step.option, *smallest[step.unit + 1 :]]
        if sum(option.nbytes for option in start) <= budget:
            found, _ = _taken(steps, start, budget)
            best = min(best, found, key=lambda chosen: sum(option.cost for option in chosen))
    return best


def _taken(steps: Sequence[_Step], start: Sequence[Option], budget: int) -> tuple[list[Option], list[_Step]]:
    """Take steps from some options on, while bytes are left: the options they lead to, and those that do not fit."""
    chosen, left = list(start), budget - sum(option.nbytes for option in start)
    blocked: dict[int, _Step] = {}
    for step in steps:
        if step.unit in blocked or step.option.nbytes <= chosen[step.unit].nbytes:
            continue
        if step.nbytes > left:
            blocked[step.unit] = step
            continue
        chosen[step.unit], left = step.option, left - step.nbytes
    return chosen, list(blocked.values())


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of bytes and cost, from the smallest to the one that costs least."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.cost)):
        if hull and option.cost >= min(it.cost for it in hull):
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _gain(small: Option, large: Option) -> float:
    """Divergence that the larger of two options saves for each byte more."""
    return (small.cost - large.cost) / (large.nbytes - small.nbytes)


def _steps(hulls: Sequence[Sequence[Option]]) -> list[_Step]:
    """All moves, with gains that fall along each hull."""
    return [
        _Step(_gain(small, large), unit, large, large.nbytes - small.nbytes)
        for unit, hull in enumerate(hulls)
        for small, large in pairwise(hull)
    ]
