"""Where to spend bits: which matrices of a plan get more than four of them, so that a target of bytes is kept.

What int4 costs each unit is said by a rule (`rule.py`), or measured (`measured.py`), which alone runs the model and is
imported for that alone; `assignment.py` spends the bytes. Matrices that an override finds keep its kind. What the
others became is a plan like any other: nothing behind it knows that there was a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from quantkit.errors import OptionError, collecting_notices
from quantkit.quantization.allocation.assignment import Option, assign
from quantkit.quantization.allocation.rule import by_rule
from quantkit.quantization.allocation.units import KIND, Unit, units_of
from quantkit.quantization.kept_codes import fit
from quantkit.quantization.plan import Plan
from quantkit.quantization.recipe import LEAST
from quantkit.quantization.recipe.target import read_size
from quantkit.quantization.report import AllocationReport, Progress
from quantkit_kernels.blocks import ROWS, nbytes

SHARES: Mapping[str, float] = MappingProxyType({KIND: 1.0, "int5": 0.27, "int6": 0.07, "int8": 0.01})
"""What a matrix costs in each kind beside what it does in `KIND`. Of 18 units of SmolLM2-135M, int5 has 0.17 to 0.55 of
the divergence of int4, 0.22 of the sum, and 0.28 of the squared error; int6 0.05 to 0.14, 0.07 and 0.07; int8 0.003 to
0.06, 0.005 and 0.007.

Three bits are no kind: linear layers in them diverge by 0.320, where int4 does by 0.053, and with them to choose from,
the same divergence would take up to 0.5 % fewer bytes."""
KEPT_SHARE = 0.005
"""The same of a kind that keeps the source's codes, which `KIND` does not: int5 leaves so much of int4's squared error
in a Q5_K_M file of SmolLM2-135M."""


def allocated(plan: Plan, *, threads: int, progress: Callable[[Progress], None] | None = None) -> Plan:
    """Return a plan of a recipe `mixed` with the kinds that its target leaves room for.

    Parameters
    ----------
    plan : Plan
        Matrices that no override finds are of the least kind in it.
    threads : int
        The result does not depend on it.
    progress : callable, optional
        Called after each unit that is measured.

    Raises
    ------
    OptionError
        The target is below what the plan takes as it is.
    """
    free = [name for name, reason in plan.reasons.items() if reason == LEAST.reason]
    units = units_of(plan.program, free)
    least, target = _packed_bytes(plan), _target(plan, free)
    _check(plan, target, least)
    with collecting_notices() as notices:
        measured, memory = _measured(plan, units, threads, progress)
    costs = measured or by_rule(units, plan.specs)
    chosen = assign(*_problem(plan, units, costs, target - least))
    kinds = {name: option.kind for unit, option in zip(units, chosen, strict=True) for name in unit.names}
    report = AllocationReport(
        target=target,
        least=least,
        sensitivities="measured" if measured else "rule",
        costs={name: cost for unit, cost in zip(units, costs, strict=True) for name in unit.names},
        divergence=sum(option.cost for option in chosen) if measured else None,
        all_int4=sum(costs) if measured else None,
        memory=memory + least if measured else 0,
    )
    specs = {name: replace(spec, kind=kinds.get(name, spec.kind)) for name, spec in plan.specs.items()}
    reasons = {name: _REASONS[kinds[name] == KIND] if name in kinds else why for name, why in plan.reasons.items()}
    return replace(plan, specs=specs, reasons=reasons, notices=(*plan.notices, *notices), allocation=report)


def _measured(
    plan: Plan, units: Sequence[Unit], threads: int, progress: Callable[[Progress], None] | None
) -> tuple[list[float] | None, int]:
    """What int4 costs each unit, where that is to be measured and can be, and the bytes of memory that it takes."""
    if plan.recipe.sensitivities != "measured":
        return None, 0
    from quantkit.quantization.allocation import measured  # heavy, as calibration

    return measured.costs(plan, units, threads, progress), measured.memory(plan, units)


_REASONS = {
    False: "mixed: more bits save most divergence for their bytes here",
    True: "mixed: more bits would save less here than elsewhere",
}


def _packed_bytes(plan: Plan) -> int:
    return sum(nbytes(spec.kind, spec.shape) for spec in plan.specs.values())


def _weights(plan: Plan) -> int:
    return sum(spec.weights for spec in plan.specs.values())


def _target(plan: Plan, free: Sequence[str]) -> int:
    """Bytes that all tensors may take; by default those of a recipe `int4`, where tables of tokens are int8."""
    recipe = plan.recipe
    if recipe.target_size is not None:
        return read_size(recipe.target_size)
    if recipe.target_bpw is not None:
        return math.floor(recipe.target_bpw * _weights(plan) / 8)
    tables = [spec.shape for spec in map(plan.specs.__getitem__, free) if spec.role in ("embedding", "head")]
    return _packed_bytes(plan) + sum(nbytes("int8", shape) - nbytes(KIND, shape) for shape in tables)


def _check(plan: Plan, target: int, least: int) -> None:
    if target >= least:
        return
    name = "target_size" if plan.recipe.target_size is not None else "target_bpw"
    bits = 8 * least / _weights(plan)
    raise OptionError(
        f"{name}: {getattr(plan.recipe, name):,} is too little: "
        f"the least that {plan.source.path} takes is {least:,} bytes, {math.ceil(1000 * bits) / 1000} bits per weight"
    )


def _problem(plan: Plan, units: Sequence[Unit], costs: Sequence[float], spare: int) -> tuple[list[list[Option]], int]:
    """What `assign` is given: the options of each unit, and the bytes of all; `spare` are those beyond the least."""
    budget = spare + sum(unit.nbytes(plan.specs, KIND) for unit in units)
    beyond = budget > sum(unit.nbytes(plan.specs, "int8") for unit in units)
    return [_options(plan, unit, cost, beyond=beyond) for unit, cost in zip(units, costs, strict=True)], budget


def _options(plan: Plan, unit: Unit, cost: float, *, beyond: bool) -> list[Option]:
    """The kinds that a unit may have; `beyond`: where int8 leaves bytes, also that of the source."""
    kinds: dict[str, float] = {}
    for kind, share in SHARES.items():
        kept = all(fit(kind, plan.source.group_scales(name, slice(0, ROWS))) for name in unit.names)
        kinds[kind] = cost * (KEPT_SHARE if kept and kind != KIND else share)
        if kept:  # wider kinds would hold the same codes
            break
    if beyond and plan.specs[unit.names[0]].role != "expert":  # of which an override may have packed some
        stored = plan.source.spec(unit.names[0]).kind
        kinds[stored if stored == "f16" else "bf16"] = 0.0
    return [Option(kind, unit.nbytes(plan.specs, kind), lost) for kind, lost in kinds.items()]
