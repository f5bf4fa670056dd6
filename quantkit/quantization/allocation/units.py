"""What gets one kind together: the matrices of an operation, which is one matrix, or one of each expert.

A matrix that several operations read, such as an embedding that is the head too, belongs to the first of them. Nothing
is computed here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from quantkit.models.program import Program
from quantkit.tensor import TensorSpec
from quantkit_kernels.blocks import nbytes

KIND = "int4"
"""The least kind, whose cost decides which units get more."""


@dataclass(frozen=True)
class Unit:
    """Matrices that get the same kind.

    Attributes
    ----------
    names : tuple of str
    border : int
        Number of the first operation that reads them: what comes before does not depend on their kind.
    """

    names: tuple[str, ...]
    border: int

    @property
    def label(self) -> str:
        """What it is called in messages."""
        more = f" and {len(self.names) - 1} more" if self.names[1:] else ""
        return f"{self.names[0]}{more}"

    def nbytes(self, specs: Mapping[str, TensorSpec], kind: str) -> int:
        """Bytes that it takes in a kind."""
        return sum(nbytes(kind, specs[name].shape) for name in self.names)


def units_of(program: Program, names: Collection[str]) -> list[Unit]:
    """Return the units of some matrices of a program, in the order of use."""
    left = set(names)
    units = []
    for border, operation in enumerate(program.operations):
        found = tuple(name for name in dict.fromkeys(operation.tensors) if name in left)
        if found:
            units.append(Unit(found, border))
            left.difference_update(found)
    return units
