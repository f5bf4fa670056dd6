"""The kernel of each operation, and its address, by which `dispatch.py` calls it.

A kernel is compiled when its address is first asked for, so a program compiles what it uses and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from quantkit_kernels.interpreter import mixture, recurrent, shared_steps, token_steps
from quantkit_kernels.interpreter.operations import OPERATIONS
from quantkit_kernels.linear.product import PRODUCTS

_ROOMS = (token_steps, shared_steps, mixture)

ADVANCES: Mapping[str, Any] = MappingProxyType(
    {name: getattr(recurrent, name) for name, spec in OPERATIONS.items() if spec.state}
)
"""What advances the state of each operation that has one, a function of its name."""

KERNELS: Mapping[str, Any] = MappingProxyType(
    {
        name: recurrent.advance if spec.state else next(getattr(room, name) for room in _ROOMS if hasattr(room, name))
        for name, spec in OPERATIONS.items()
    }
)
"""The kernel of each operation: a function of its name, or the one that all operations with a state share."""


@dataclass(frozen=True)
class Kernels:
    """Addresses of the compiled kernels of a program.

    Attributes
    ----------
    operations : Mapping of str to int
        Of the kernel of each operation.
    advances : Mapping of str to int
        Of what advances the state of each operation that has one.
    products : Mapping of str to int
        Of the matrix product of each kind of weight.
    """

    operations: Mapping[str, int]
    advances: Mapping[str, int]
    products: Mapping[str, int]


def compiled(operations: Collection[str], kinds: Collection[str]) -> Kernels:
    """Compile the kernels of some operations, and the matrix products of some kinds of weights, unless they are."""
    return Kernels(
        {name: KERNELS[name].address for name in operations},
        {name: ADVANCES[name].address for name in operations if name in ADVANCES},
        {kind: PRODUCTS[kind].address for kind in kinds},
    )
