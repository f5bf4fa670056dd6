"""What int4 costs the units of a plan, by what the model reads.

It is measured (`sensitivity.py`) of what each will be (`packing.py`), or was measured before (`known.py`). Which kinds
follow from it is `__init__.py`'s affair.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from quantkit.errors import notice
from quantkit.quantization.allocation.known import Known
from quantkit.quantization.allocation.packing import packing_of, spread
from quantkit.quantization.allocation.sensitivity import measure, memory_needed
from quantkit.quantization.allocation.units import Unit
from quantkit.quantization.calibration import BUILTIN
from quantkit.quantization.calibration.text import read_calibration_text
from quantkit.quantization.plan import Plan
from quantkit.quantization.report import Progress

logger = logging.getLogger(__name__)

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


def costs(
    plan: Plan, units: Sequence[Unit], threads: int, progress: Callable[[Progress], None] | None
) -> list[float] | None:
    """Return what int4 costs each unit, measured now or before; None for a model that cannot read."""
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


def memory(plan: Plan, units: Sequence[Unit]) -> int:
    """Return about how many bytes measuring needs in memory, beside the packed matrices."""
    return memory_needed(plan.program, plan.source, units, WINDOWS * WINDOW_TOKENS)


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
