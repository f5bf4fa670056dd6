"""Where a program stops to be calibrated: before products whose inputs are known and whose weights are not packed.

Each stop has the products that can be calibrated at it, those that share inputs together: queries, keys and values, or
gate and up of an expert. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from quantkit.models.program import Operation, Program, Value


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


def stops_of(program: Program, names: Collection[str]) -> list[Stop]:
    """Return where to stop so that weights are calibrated before they are used, for the inputs of their first use."""
    stops: list[Stop] = []
    left = set(names)
    products = [(number, each, _weights(each)) for number, each in enumerate(program.operations) if each.spec.product]
    for place, (border, _, weights) in enumerate(products):
        if left.isdisjoint(weights):
            continue
        stop = Stop(border)
        stops.append(stop)
        for _, operation, weights in products[place:]:
            x, routing = _rows(program, operation), _routing(program, operation)
            known = all(value.index < border for value in (x, routing) if value)
            if known and not left.isdisjoint(weights):
                shared = stop.shared.setdefault(operation.inputs[0].index, Shared(x, routing, [[] for _ in weights]))
                for names, name in zip(shared.names, weights, strict=True):
                    names += [name] if name in left else []
                other = _added_to(program, operation)
                if other and other.index < border:
                    shared.added_to[weights[0]] = other
                left.difference_update(weights)
    return stops


def _weights(operation: Operation) -> tuple[str, ...]:
    """The matrices of a product: one, or that of each expert."""
    return operation.tensors[: operation.parameters.get("experts", 1)]


def _added_to(program: Program, operation: Operation) -> Value | None:
    """The value that the output of a product is added to, if that is all that happens to it."""
    output = operation.output
    readers = [each for each in program.operations if output in each.inputs]
    if operation.spec.stacked or [each.name for each in readers] != ["add"]:
        return None
    others = [x for x in readers[0].inputs if isinstance(x, Value) and x != output]
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
