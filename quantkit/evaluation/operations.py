"""Where the time of a pass goes: the steps of a plan by operation, each beside what it read and multiplied.

The times are the interpreter's own (`Model.time_steps`), the costs those of `roofline.py`. Fused token steps are one
operation. What is left of the clock's time is shown as well: threads that
wait for one another, and everything outside the compiled pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.evaluation.roofline import Costs
from quantkit_kernels.interpreter.operations import Chunk, Cost

if TYPE_CHECKING:
    from quantkit.engine.model import Model
    from quantkit.engine.steps import Step

WAITING, OUTSIDE = "(waiting)", "(outside)"
"""Names of what no step does: threads that wait for each other; Python, and waking the workers."""


@dataclass(frozen=True)
class OperationTime:
    """All steps of a kind, in one call of `Model.forward` on average.

    Attributes
    ----------
    name : str
        `linear q_proj`, `expert_linear up_proj`, `add + rms_norm + quantize`, ...; or `WAITING`, `OUTSIDE`.
    calls : float
        How often it ran; for `WAITING` and `OUTSIDE` the passes.
    cost : Cost
        What they had to read and multiply.
    seconds : float
        Time they took, the mean of the threads. All operations together make up the clock's time.
    share : float
        Of the clock's time.
    """

    name: str
    calls: float
    cost: Cost
    seconds: float
    share: float


def operation_times(
    model: Model, costs: Costs, calls: Sequence[Sequence[Chunk]], run: Callable[[], int]
) -> tuple[OperationTime, ...]:
    """Time the operations of some calls of `Model.forward`, the slowest first.

    Parameters
    ----------
    model : Model
    costs : Costs
        The model's.
    calls : sequence of sequences of Chunk
        What `run` gives to `Model.forward`.
    run : callable
        Makes the calls; returns nanoseconds.
    """
    with model.time_steps() as times:
        clock = run() * 1e-9
    passes = [cut for call in calls for cut in costs.passes(call)]
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    totals: dict[str, Cost] = {}
    worked = times[:, :-1, 1].mean(axis=0) * 1e-9
    for begin, steps in _fused(model):
        name = " + ".join(_name(model, step) for step in steps)
        seconds[name] = seconds.get(name, 0.0) + float(worked[begin : begin + len(steps)].sum())
        counts[name] = counts.get(name, 0) + len(passes)
        cost = sum((costs.step(step, chunks, wanted) for step in steps for chunks, wanted in passes), start=Cost())
        totals[name] = totals.get(name, Cost()) + cost
    inside = float(times[0].sum()) * 1e-9  # thread 0 is there from the first step to the end
    seconds |= {WAITING: inside - sum(seconds.values()), OUTSIDE: clock - inside}
    counts |= dict.fromkeys((WAITING, OUTSIDE), len(passes))
    each = 1 / len(calls)
    return tuple(
        OperationTime(name, counts[name] * each, totals.get(name, Cost()) * each, spent * each, spent / clock)
        for name, spent in sorted(seconds.items(), key=lambda item: -item[1])
    )


def _fused(model: Model) -> Iterator[tuple[int, Sequence[Step]]]:
    """Steps that run as one, each with the number of its first."""
    steps, begin = model.plan.steps, 0
    while begin < len(steps):
        yield begin, steps[begin : begin + steps[begin].fused]
        begin += steps[begin].fused


def _name(model: Model, step: Step) -> str:
    """A matrix product by its module, anything else by what it does."""
    if not step.spec.product:
        return step.spec.name
    # A tied head goes by the name of the embedding.
    tied = model.program.tensors[step.weights[0]].role == "embedding"
    return f"{step.spec.name} {'lm_head' if tied else step.weights[0].split('.')[-2]}"
