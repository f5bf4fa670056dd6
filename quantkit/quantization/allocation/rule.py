"""Sensitivities by a rule, for those who want no run of the model: what holds for most models, and is exact for none.

A unit's cost grows with the root of its size: outputs count alike, whatever makes them, and larger matrices are a
little less redundant. The matrices that write what attention carries and what MLPs make of it count double, as do,
half, the first and last eighth of the layers; llama.cpp's Q4_K_M gives bits to the same ones. Tables of tokens hold
whole tokens and come last to be rounded. With a text to calibrate on the rule is the same: if layers counted half, as
they do where costs are measured, SmolLM2-135M in 90.5 MB would diverge by 0.0153 instead of 0.0129.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from quantkit.quantization.allocation.units import Unit
from quantkit.tensor import Role, TensorSpec

SENSITIVE = re.compile(r"\b(v_proj|kv_b_proj|down_proj|w2|fc2|output_linear|dense_4h_to_h|mlp\.c_proj)\b")
"""Names of the matrices that make values, and of those behind the activation of an MLP."""
SENSITIVE_FACTOR = 2.0
ENDS = 1 / 8
"""Share of the layers at either end that count more."""
ENDS_FACTOR = 1.5
ROLE_FACTORS: Mapping[Role, float] = {"embedding": 16.0, "head": 16.0}
COST = 1e-6
"""Divergence for the root of a weight, about: 0.1 for all of a model of 135M. Costs of a rule are compared alone."""
_LAYER = re.compile(r"\.(\d+)\.")


def by_rule(units: Sequence[Unit], specs: Mapping[str, TensorSpec]) -> list[float]:
    """Return what a rule says that each unit costs in int4."""
    layers = [int(found[1]) if (found := _LAYER.search(unit.names[0])) else None for unit in units]
    last = max((layer for layer in layers if layer is not None), default=0)
    costs = []
    for unit, layer in zip(units, layers, strict=True):
        cost = COST * math.sqrt(sum(specs[name].weights for name in unit.names))
        cost *= ROLE_FACTORS.get(specs[unit.names[0]].role, 1.0)
        cost *= SENSITIVE_FACTOR if SENSITIVE.search(unit.names[0]) else 1.0
        at_an_end = layer is not None and min(layer, last - layer) < ENDS * (last + 1)
        costs.append(cost * (ENDS_FACTOR if at_an_end else 1.0))
    return costs
