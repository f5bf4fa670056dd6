"""The kernel of each operation, and its address, by which `dispatch.py` calls it.

A kernel is compiled when its address is first asked for, so a program compiles what it uses and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module

from quantkit_kernels.compile.jit import Kernel
from quantkit_kernels.compile.parallel import compile_beside
from quantkit_kernels.interpreter.dispatch import participate
from quantkit_kernels.interpreter.operations import OPERATIONS
from quantkit_kernels.linear.product import PRODUCTS
from quantkit_kernels.rows.choice import choose

_ROOMS = ("token_steps", "shared_steps", "mixture")
"""Modules beside this one, imported in this order until the kernel is found: most programs need no mixture."""


def kernel_of(operation: str) -> Kernel:
    """Return the kernel of an operation: a function of its name, or the one that all with a state share."""
    if OPERATIONS[operation].state:
        return _kernel("recurrent", "advance")
    return next(kernel for room in _ROOMS if (kernel := _kernel(room, operation)))


def advance_of(operation: str) -> Kernel:
    """Return what advances the state of an operation that has one, a function of its name."""
    return _kernel("recurrent", operation)


def _kernel(room: str, name: str) -> Kernel | None:
    return getattr(import_module(f"quantkit_kernels.interpreter.{room}"), name, None)


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


def compiled(operations: Collection[str], kinds: Collection[str], processes: int = 1) -> Kernels:
    """Compile the kernels of some operations, and the matrix products of some kinds of weights, unless they are.

    What is not on disk is compiled by several processes at once, and with it the interpreter that calls these kernels
    and the choice of a token, which few who ask for logits do without.
    """
    lengthy = [kernel_of(name) for name in operations if OPERATIONS[name].shared]
    advances = [advance_of(name) for name in operations if OPERATIONS[name].state]
    others = [kernel_of(name) for name in operations if not OPERATIONS[name].shared]
    products = [PRODUCTS[kind] for kind in kinds]
    kernels = [*lengthy, *products, participate, choose, *advances, *others]
    compile_beside([kernel for kernel in kernels if not kernel.loaded], processes)
    return Kernels(
        {name: kernel_of(name).address for name in operations},
        {name: advance_of(name).address for name in operations if OPERATIONS[name].state},
        {kind: PRODUCTS[kind].address for kind in kinds},
    )
