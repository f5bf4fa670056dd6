"""The program: the flat list of operations that a forward pass recorded.

It knows every operation in order and every tensor that it needs, with its shape and role, so the same recording checks
a checkpoint, plans memory and runs. `recorder/` has the operations that families record, `quantkit.engine.lowering`
makes the steps of a program that the compiled interpreter runs, and `quantkit.quantization` reads only its tensors.
Nothing is computed here and no file is read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from quantkit.tensor import Role, TensorSpec
from quantkit_kernels.interpreter.operations import OPERATIONS, OperationSpec


@dataclass(frozen=True)
class Value:
    """The result of an operation: f32 `[tokens, columns]`.

    `selected` values have a row only for the tokens whose logits are wanted. Where `per_token` is more than 1, a value
    has so many rows for each token, sorted by the expert that they go to.
    """

    index: int
    columns: int
    selected: bool = False
    per_token: int = 1


@dataclass(frozen=True)
class Cache:
    """The keys and values of one layer, of all tokens of a sequence so far.

    Each of its `kv_heads` heads has `head_dim` channels in its keys, and `v_head_dim` in its values.
    """

    index: int
    kv_heads: int
    head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Assignment:
    """Which rows go to which of `experts`: `top_k` for each token."""

    index: int
    experts: int
    top_k: int


@dataclass(frozen=True)
class Choice:
    """What a router chose for each token by its logits: experts with their weights, and the rows that go to each."""

    logits: Value
    routing: Value
    assigned: Assignment


Operand = Value | Cache | Assignment
_Output = TypeVar("_Output", Value, Cache, Assignment)

_CLASS_OF = {"cache": Cache, "assigned": Assignment}
"""Names of inputs that are no values."""


@dataclass(frozen=True)
class Operation:
    """One operation of a program: `output = name(inputs, tensors, constant, **parameters)`."""

    name: str
    inputs: tuple[Operand, ...]
    output: Operand
    tensors: tuple[str, ...] = ()
    constant: tuple[float, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def spec(self) -> OperationSpec:
        """What is known of operations of this name."""
        return OPERATIONS[self.name]


@dataclass(frozen=True)
class Program:
    """A recorded forward pass, token ids in, logits `[wanted tokens, columns]` out; or a part of one (`parts.py`)."""

    operations: tuple[Operation, ...]
    tensors: Mapping[str, TensorSpec]
    outputs: tuple[Value, ...]
    """What it leaves for the caller: the logits, or what later parts read."""
    spare: frozenset[str] = frozenset()
    """Tensors that checkpoints may have, though nothing reads them."""
    inputs: tuple[Value, ...] = ()
    """What it reads of earlier parts: nothing, if it is no part."""

    @cached_property
    def logits(self) -> Value:
        """The last of its outputs."""
        return self.outputs[-1]

    @cached_property
    def vocab_size(self) -> int:
        """Token ids that its embedding has rows for; a part without one takes any."""
        embedded = [self.tensors[each.tensors[0]].shape[0] for each in self.operations if each.name == "embed"]
        return min(embedded, default=sys.maxsize)

    @property
    def learned_positions(self) -> int | None:
        """Positions that its tables of learned positions have rows for; None: it has no such table."""
        tables = [
            self.tensors[each.tensors[0]].shape[0] - int(each.parameters["position_offset"])
            for each in self.operations
            if each.name == "embed_positions"
        ]
        return min(tables, default=None)


class Recording:
    """A program that is being written: every operation is checked against its row in the table."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._tensors: dict[str, TensorSpec] = {}
        self._spare: set[str] = set()

    def program(self) -> Program:
        """Return what has been recorded so far; the last operation's output is the logits.

        They are `[wanted tokens, columns]`: `select` must have come before.
        """
        logits = self._operations[-1].output if self._operations else None
        if not isinstance(logits, Value) or not logits.selected:
            raise ValueError("a program ends with the logits of the selected tokens")
        tensors = MappingProxyType(dict(self._tensors))
        return Program(tuple(self._operations), tensors, (logits,), frozenset(self._spare))

    def spare(self, *tensors: str) -> None:
        """Name tensors that checkpoints may have, though nothing reads them."""
        self._spare.update(tensors)

    def _tensor(
        self, name: str, shape: tuple[int, ...], role: Role, *, aliases: tuple[str, ...] = (), optional: bool = False
    ) -> str:
        # A tied head is the embedding: first use names the role.
        known = self._tensors.setdefault(name, TensorSpec(name, shape, role, aliases=aliases, optional=optional))
        if known.shape != shape:
            raise ValueError(f"{name} is used as {known.shape} and as {shape}")
        return name

    def _record(
        self,
        name: str,
        inputs: tuple[Operand, ...],
        columns: int,
        tensors: tuple[str, ...] = (),
        constant: tuple[float, ...] = (),
        **parameters: Any,
    ) -> Value:
        selected = {value.selected for value in inputs if isinstance(value, Value)}
        if len(selected) > 1:
            raise ValueError(f"{name}: only some of the inputs are selected")
        per_token = {value.per_token for value in inputs if isinstance(value, Value)}
        if len(per_token) > 1:
            raise ValueError(f"{name}: inputs have {per_token} rows for each token")
        output = Value(len(self._operations), columns, selected == {True}, max(per_token, default=1))
        return self._append(name, inputs, output, tensors, constant, **parameters)

    def _append(
        self,
        name: str,
        inputs: tuple[Operand, ...],
        output: _Output,
        tensors: tuple[str, ...] = (),
        constant: tuple[float, ...] = (),
        **parameters: Any,
    ) -> _Output:
        operation = Operation(name, inputs, output, tensors, constant, MappingProxyType(parameters))
        spec = operation.spec
        for place, value in zip(spec.inputs, inputs, strict=True):
            if not isinstance(value, _CLASS_OF.get(place, Value)):
                raise ValueError(f"{name}: {place} is a {type(value).__name__.lower()}")
        if parameters.keys() != set(spec.parameters) or not (spec.stacked or len(tensors) <= len(spec.weights)):
            raise ValueError(f"{name}: its row in the table of operations asks for {spec.parameters}, {spec.weights}")
        self._operations.append(operation)
        return output
