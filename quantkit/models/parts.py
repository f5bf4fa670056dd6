"""Programs in parts: each reads what earlier parts left, and leaves what later ones read.

What is computed does not change, to the last bit. Whoever runs a model whose weights come one after the other, as
calibration does, runs part by part; `quantkit.engine.model` runs a part as any program.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

from quantkit.models.program import Operation, Program, Value


def cut(program: Program, borders: Sequence[int]) -> list[Program]:
    """Cut a program before some of its operations.

    Parameters
    ----------
    program : Program
    borders : sequence of int
        Numbers of operations, ascending, each between 0 and their count.

    Returns
    -------
    list of Program
        One more than there are borders. The inputs of a part are outputs of earlier ones. What costs less to compute
        than to keep, it computes again.
    """
    parts: list[Program] = []
    wanted = {value.index: value for value in program.outputs}
    for begin, end in reversed(list(pairwise((0, *borders, len(program.operations))))):
        operations, inputs = _with_repeated(program, begin, end)
        outputs = tuple(wanted.pop(index) for index in sorted(wanted) if begin <= index < end)
        tensors = {name: program.tensors[name] for each in operations for name in each.tensors}
        parts.append(Program(operations, MappingProxyType(tensors), outputs, inputs=tuple(inputs.values())))
        wanted |= inputs
    return parts[::-1]


def _with_repeated(program: Program, begin: int, end: int) -> tuple[tuple[Operation, ...], dict[int, Value]]:
    """Operations `begin` to `end`, behind those that they repeat, and the values that they take of earlier ones."""
    operations = {index: program.operations[index] for index in range(begin, end)}
    inputs: dict[int, Value] = {}
    pending = list(operations.values())
    while pending:
        for x in pending.pop().inputs:
            made_by = program.operations[x.index]
            if x.index in operations:
                continue
            if isinstance(x, Value) and not _is_repeated(made_by):
                inputs[x.index] = x
            else:
                operations[x.index] = made_by
                pending.append(made_by)
    return tuple(operations[index] for index in sorted(operations)), dict(sorted(inputs.items()))


def _is_repeated(operation: Operation) -> bool:
    """Whether rows that later parts read are computed again there: copies of others, and what no weight decides."""
    return operation.name == "gather" or not (operation.inputs or operation.tensors)
