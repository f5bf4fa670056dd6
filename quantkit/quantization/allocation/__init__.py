"""Where to spend bits: which matrices of a plan get more than four of them, so that a target of bytes is kept.

What int4 costs each unit is measured (`sensitivity.py`) of what it will be (`packing.py`), was measured before
(`known.py`), or is said by a rule (`rule.py`); `assignment.py` spends the bytes. Matrices that an override finds keep
its kind. What the others became is a plan like any other: nothing behind it knows that there was a target.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from quantkit.errors import OptionError, collecting_notices, notice
from quantkit.quantization.allocation.assignment import Option, assign
from quantkit.quantization.allocation.known import Known
from quantkit.quantization.allocation.packing import packing_of, spread
from quantkit.quantization.allocation.rule import by_rule
from quantkit.quantization.allocation.sensitivity import KIND, measure, memory_needed
from quantkit.quantization.allocation.units import Unit, units_of
from quantkit.quantization.calibration import BUILTIN
from quantkit.quantization.calibration.text import read_calibration_text
from quantkit.quantization.kept_codes import fit
from quantkit.quantization.plan import Plan
from quantkit.quantization.recipe import LEAST
from quantkit.quantization.recipe.target import read_size
from quantkit.quantization.report import AllocationReport, Progress
from quantkit_kernels.blocks import ROWS, nbytes

logger = logging.getLogger(__name__)

DEFAULT_SHARE = 0.15
"""Of the way from int4 to int8, in bytes of the linear layers, that the default target goes."""
SHARES: Mapping[str, float] = MappingProxyType({KIND: 1.0, "int5": 0.27, "int6": 0.07, "int8": 0.01})
"""What a matrix costs in each kind beside what it does in `KIND`. Of 18 units of SmolLM2-135M, int5 has 0.17 to 0.55 of
the divergence of int4, 0.22 of the sum, and 0.28 of the squared error; int6 0.05 to 0.14, 0.07 and 0.07; int8 0.003 to
0.06, 0.005 and 0.007."""
KEPT_SHARE = 0.005
"""The same of a kind that keeps the source's codes, which `KIND` does not: int5 leaves so much of int4's squared error
in a Q5_K_M file of SmolLM2-135M."""
MADE_UP_SHARE = 1 / 2
"""What is left of the cost of a calibrated layer in the model, whose later layers make up for what it lost. Those of
SmolLM2-135M cost 0.044 one by one, and 0.021 all together; its embedding, which is the head too, 0.015 and 0.016."""
WINDOWS, WINDOW_TOKENS, LEAST_WINDOW_TOKENS = 4, 64, 16
"""Of the built-in text, and what models of more than a billion weights read of them at least. More tokens choose the
same matrices, but windows have to differ: a single one, in a language new to the model, chose twice the loss."""
TIMED_UNITS = 5
"""How many are measured before it is said how long all take."""
NOTHING = 1e-12
"""Divergences below are those of rounding in f32."""
MOST_WORK = 2e13
"""Multiply-adds that measuring may take with windows longer than the least: six minutes of two fast cores."""


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
        measured = _measured(plan, units, threads, progress) if plan.recipe.sensitivities == "measured" else None
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
        memory=memory_needed(plan.program, plan.source, units, WINDOWS * WINDOW_TOKENS) + least if measured else 0,
    )
    specs = {name: replace(spec, kind=kinds.get(name, spec.kind)) for name, spec in plan.specs.items()}
    reasons = {name: _REASONS[kinds[name] == KIND] if name in kinds else why for name, why in plan.reasons.items()}
    return replace(plan, specs=specs, reasons=reasons, notices=(*plan.notices, *notices), allocation=report)


_REASONS = {
    False: "mixed: more bits save most divergence for their bytes here",
    True: "mixed: more bits would save less here than elsewhere",
}


def _packed_bytes(plan: Plan) -> int:
    return sum(nbytes(spec.kind, spec.shape) for spec in plan.specs.values())


def _weights(plan: Plan) -> int:
    return sum(spec.weights for spec in plan.specs.values())


def _target(plan: Plan, free: Sequence[str]) -> int:
    """Bytes that all tensors may take."""
    recipe = plan.recipe
    if recipe.target_size is not None:
        return read_size(recipe.target_size)
    if recipe.target_bpw is not None:
        return math.floor(recipe.target_bpw * _weights(plan) / 8)
    more = 0.0
    for spec in (plan.specs[name] for name in free):
        share = DEFAULT_SHARE if spec.role in ("linear", "expert") else 1
        more += share * (nbytes("int8", spec.shape) - nbytes(KIND, spec.shape))
    return _packed_bytes(plan) + int(more)


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


def _measured(
    plan: Plan, units: Sequence[Unit], threads: int, progress: Callable[[Progress], None] | None
) -> list[float] | None:
    """What int4 costs each unit, measured now or before; None for a model that cannot read."""
    if "tokenizer.json" not in plan.source.files:
        notice(logger, f"{plan.source.path}: without a tokenizer nothing can be measured; a rule says what matters")
        return None
    text = read_calibration_text(BUILTIN, plan.source, plan.program)
    windows = _windows(text.windows, _work(plan, units))
    known = Known([plan.about.get("calibration"), plan.about.get("imatrix")], plan.source.identity(), windows)
    missing = [unit for unit in units if known.get(unit.label) is None]
    packed = packing_of(plan, [name for unit in missing for name in unit.names], threads, progress)
    start = 0.0
    for number, found in enumerate(measure(plan.program, plan.source, missing, packed, windows, threads), 1):
        unit, divergences = found
        known.add(unit.label, divergences)
        start = start or time.perf_counter()  # what came before is compiling, and reading without any of it rounded
        if number == TIMED_UNITS:
            minutes = (time.perf_counter() - start) / (number - 1) * len(missing) / 2 / 60  # the last run little
            about = "a minute" if minutes <= 1 else f"{math.ceil(minutes)} minutes"
            logger.info("measuring what int4 costs each matrix: about %s, once", about)
        if progress:
            progress(Progress(f"measuring {unit.label}", number, len(missing)))
    return [_left(plan, unit) * _typical(known.get(unit.label) or []) for unit in units]


def _left(plan: Plan, unit: Unit) -> float:
    """The share of the cost of a unit alone that it has in the whole model."""
    made_up = plan.text and plan.specs[unit.names[0]].role in ("linear", "expert")
    return MADE_UP_SHARE if made_up else 1.0


def _windows(texts: Sequence[Sequence[int]], work: float) -> list[list[int]]:
    """Take the beginnings of some windows of a text; shorter ones for models that are slow to run."""
    length = min(WINDOW_TOKENS, max(LEAST_WINDOW_TOKENS, int(MOST_WORK / work / WINDOWS)))
    return [window[:length] for window in spread(texts, WINDOWS)]


def _work(plan: Plan, units: Sequence[Unit]) -> float:
    """Multiply-adds for a token of all windows: for each unit, the products from it to the end."""
    macs = []
    for operation in plan.program.operations:
        experts = operation.parameters.get("experts", 1)
        weights = sum(plan.specs[name].weights for name in operation.tensors[:experts]) if operation.spec.product else 0
        macs.append(weights * getattr(operation.output, "per_token", 1) / experts)
    return sum(sum(macs[unit.border :]) for unit in units) or 1.0


def _typical(divergences: Sequence[float]) -> float:
    """The geometric mean of the divergences of windows: one that surprises the model does not outweigh the others."""
    return math.exp(sum(math.log(max(each, NOTHING)) for each in divergences) / len(divergences))
