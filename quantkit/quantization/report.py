"""What a conversion says of itself: how far it is, and what it made or would make.

Sums over specs of tensors and over what `conversion.py` measured; no weight is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import nbytes


@dataclass(frozen=True)
class Progress:
    """How far a conversion is.

    Attributes
    ----------
    tensor : str
        The tensor that was just written.
    done, total : int
        Weights written, and weights in all.
    """

    tensor: str
    done: int
    total: int


@dataclass(frozen=True)
class KindReport:
    """What the tensors of a kind add up to: how many, their weights, their bytes with row scales."""

    kind: str
    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Report:
    """What a conversion made, or would make.

    Attributes
    ----------
    kinds : tuple of KindReport
        Largest first.
    bits_per_weight : float
        Of all tensors, row scales included.
    source_bytes, packed_bytes : int
        Bytes of all tensors, before and after.
    seconds : float
        Duration.
    peak_rss : int
        The most bytes that this process had in memory at once until now.
    unused : tuple of str
        Tensors of the checkpoint that the model does not use; they were left out.
    notices : tuple of str
        What is said of this and of all else that was left out, or that stands in for something missing.
    errors : Mapping of str to float
        Each tensor's squared error, relative to its sum of squares.
    """

    kinds: tuple[KindReport, ...]
    source_bytes: int
    unused: tuple[str, ...]
    notices: tuple[str, ...]
    seconds: float
    peak_rss: int
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def packed_bytes(self) -> int:
        return sum(row.nbytes for row in self.kinds)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.packed_bytes / sum(row.weights for row in self.kinds)


def by_kind(specs: Mapping[str, TensorSpec]) -> tuple[KindReport, ...]:
    """Return what the tensors of each kind add up to, largest first."""
    kinds: dict[str, list[TensorSpec]] = {}
    for spec in specs.values():
        kinds.setdefault(spec.kind, []).append(spec)
    rows = (
        KindReport(kind, len(group), sum(one.weights for one in group), sum(nbytes(kind, one.shape) for one in group))
        for kind, group in kinds.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.nbytes))
