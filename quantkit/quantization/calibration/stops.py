"""Where a program stops to be calibrated: before products whose inputs are known and whose weights are not packed.

Each stop has the products that can be calibrated at it, those that share inputs together: queries, keys and values, or
gate and up of an expert. Nothing is computed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from quantkit.models.program import Operation, Program, Value
from quantkit.quantization.calibration import CALIBRATED, REFERENCE_KIND
from quantkit.tensor import TensorSpec


@dataclass
class Shared:
    """Weights that meet the same rows.

    Attributes
    ----------
    x : Value
        Holds the rows. Those of experts are all tokens, or `top_k` rows of each, sorted by expert.
    routing : Value, optional
        Which experts a token goes to; None: the rows go to every weight.
    names : list of list of str
        Of the weights, for each expert; a single list if there are none.
    added_to : dict of str to Value
        What the output of a weight is added to and nothing else reads, such as the residual stream, by its name; those
        of which the stop knows it.
    """

    x: Value
    routing: Value | None
    names: list[list[str]]
    added_to: dict[str, Value] = field(default_factory=dict)


@dataclass
class Stop:
    """A place in a program.

    Attributes
    ----------
    border : int
        Number of the operation before which it is.
    shared : dict of int to Shared
        What is calibrated there, by the index of the value that the products read.
    """

    border: int
    shared: dict[int, Shared] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The weights that are calibrated there."""
        return [name for shared in self.shared.values() for names in shared.names for name in names]


def fitted_names(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Return the matrices that are packed for their inputs, by the kinds that tensors are to have.

    Those of `CALIBRATED` kinds are; and layers of `REFERENCE_KIND`, which round little themselves, for what those
    before them lost.
    """
    return [
        name
        for name, spec in specs.items()
        if spec.kind in CALIBRATED or (spec.kind == REFERENCE_KIND and spec.role in ("linear", "expert"))
    ]


def stops_of(program: Program, names: Collection[str]) -> list[Stop]:
    """Return where to stop so that weights are calibrated before they are used, for the inputs of their first use."""
    stops: list[Stop] = []
    left = set(names)
    products = [_product(program, number) for number, each in enumerate(program.operations) if each.spec.product]
    readers = _readers(program)
    for place, first in enumerate(products):
        if left.isdisjoint(first.weights):
            continue
        stop = Stop(first.number)
        stops.append(stop)
        for product in products[place:]:
            if product.known < stop.border and not left.isdisjoint(product.weights):
                lists: list[list[str]] = [[] for _ in product.weights]
                read = product.operation.inputs[0].index
                shared = stop.shared.setdefault(read, Shared(product.x, product.routing, lists))
                for names, name in zip(shared.names, product.weights, strict=True):
                    names += [name] if name in left else []
                other = _added_to(product.operation, readers)
                if other and other.index < stop.border:
                    shared.added_to[product.weights[0]] = other
                left.difference_update(product.weights)
    return stops


class _Product(NamedTuple):
    """A product, its matrices, the rows that they meet and what routes these; `known` is the later one of the two."""

    number: int
    operation: Operation
    weights: tuple[str, ...]
    x: Value
    routing: Value | None
    known: int


def _product(program: Program, number: int) -> _Product:
    operation = program.operations[number]
    x, routing = _rows(program, operation), _routing(program, operation)
    known = max(value.index for value in (x, routing) if value)
    return _Product(number, operation, _weights(operation), x, routing, known)


def _readers(program: Program) -> dict[int, list[Operation]]:
    """Return the operations that read each value, by its index."""
    readers: dict[int, list[Operation]] = defaultdict(list)
    for operation in program.operations:
        for index in {x.index for x in operation.inputs}:
            readers[index].append(operation)
    return readers


def _weights(operation: Operation) -> tuple[str, ...]:
    """The matrices of a product: one, or that of each expert."""
    return operation.tensors[: operation.parameters.get("experts", 1)]


def _added_to(operation: Operation, readers: Mapping[int, list[Operation]]) -> Value | None:
    """The value that the output of a product is added to, if that is all that happens to it."""
    output = operation.output
    reading = readers.get(output.index, [])
    if operation.spec.stacked or [each.name for each in reading] != ["add"]:
        return None
    others = [x for x in reading[0].inputs if isinstance(x, Value) and x != output]
    return others[0] if others else None


def _rows(program: Program, operation: Operation) -> Value:
    """The value that holds the rows which a product reads, gathered or not."""
    x = operation.inputs[0]
    made_by = program.operations[x.index]
    source = made_by.inputs[0] if made_by.name == "gather" else x
    assert isinstance(source, Value)
    return source


def _routing(program: Program, operation: Operation) -> Value | None:
    """What chose the experts of a product, if it has any."""
    if not operation.spec.stacked:
        return None
    routing = program.operations[operation.inputs[1].index].inputs[0]
    assert isinstance(routing, Value)
    return routing
