"""What recorded operations ask of their inputs; what does not fit raises `ValueError`."""

from __future__ import annotations

from quantkit.models.program import Value
from quantkit_kernels.interpreter.operations import ACTIVATIONS


def known(activation: str) -> str:
    """Return an activation's name, which must be one of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    return activation


def positive(name: str, limit: float) -> float:
    """Return an operation's limit, which must be more than 0."""
    if not limit > 0:
        raise ValueError(f"{name}: {limit} is not a positive limit")
    return limit


def plain(*values: Value) -> bool:
    """Whether values have one row for each token of the batch."""
    return not any(value.selected or value.per_token > 1 for value in values)
