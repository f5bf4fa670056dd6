"""From a recorded program to the steps that the compiled interpreter runs.

Lowering makes three decisions, each once for a model: activations are quantized once for all packed matrices that read
them; threads meet only where one reads what another wrote; and token steps between two barriers are fused. `arena.py`
decides which values share memory, `quantkit.models.program` says what is computed, `quantkit_kernels.interpreter`
what a step means, and `model.py` runs the result. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.arena import assign_memory
from quantkit.engine.kv_cache import CacheLayer
from quantkit.engine.steps import Buffer, Step
from quantkit.errors import UnsupportedError
from quantkit.models.program import Assignment, Cache, Operation, Program, Value
from quantkit_kernels.blocks import KINDS, grid
from quantkit_kernels.interpreter.kernels import Kernels
from quantkit_kernels.interpreter.layout import STEP
from quantkit_kernels.interpreter.operations import ACTIVATIONS, OPERATIONS, SCORINGS
from quantkit_kernels.linear.activations import packed_bytes
from quantkit_kernels.linear.packed import ROW_TILES
from quantkit_kernels.rows.choice import BLOCK
from quantkit_kernels.rows.routing import table_bytes

LINE_FLOATS = 16
"""Rows of values are padded to whole cache lines of f32."""
CHUNK_BYTES = 64 * 1024
"""Weights that a thread takes at once: long enough to stream, short enough that threads finish together."""


@dataclass(frozen=True)
class Weight:
    """Where a tensor lies: addresses of checked memory that somebody keeps alive."""

    kind: str
    data: int
    row_scales: int = 0


@dataclass(frozen=True)
class Addresses:
    """Where everything lies that steps read and write.

    Attributes
    ----------
    kernels : Kernels
    weights : Mapping of str to Weight
    stacks : Mapping of tuple of str to int
        Address of a table of `linear.experts.EXPERT_FIELDS` for each expert, of each of `Plan.stacks`.
    constants : Mapping of tuple of float to int
        Address of each of `Plan.constants`, as f32.
    arena : int
        Address of `Plan.arena_bytes`.
    cache_offsets : sequence of int
        Byte offset in a page of each of `Plan.cache_layers`.
    """

    kernels: Kernels
    weights: Mapping[str, Weight]
    stacks: Mapping[tuple[str, ...], int]
    constants: Mapping[tuple[float, ...], int]
    arena: int
    cache_offsets: Sequence[int]


@dataclass(frozen=True)
class Plan:
    """What a pass does.

    Attributes
    ----------
    steps : tuple of Step
        In order.
    slots : tuple of int
        Bytes per token of each slot of the arena.
    local_bytes : int
        Bytes of each thread's own memory.
    cache_layers : tuple of CacheLayer
        What the steps keep of a position in the KV cache.
    state_bytes : int
        What they keep of a sequence, however long it is.
    """

    steps: tuple[Step, ...]
    slots: tuple[int, ...]
    local_bytes: int
    cache_layers: tuple[CacheLayer, ...]
    state_bytes: int

    @property
    def constants(self) -> set[tuple[float, ...]]:
        """All constants that steps read."""
        return {step.constant for step in self.steps if step.constant}

    @property
    def stacks(self) -> dict[tuple[str, ...], int]:
        """The tensors of each step that reads one of each expert, and how many experts there are."""
        return {step.weights: int(step.fields["experts"]) for step in self.steps if step.spec.stacked}

    @property
    def matrices(self) -> set[str]:
        """Names of all weights of matrix products."""
        return {
            name
            for step in self.steps
            if step.spec.product
            for name in step.weights[: int(step.fields["experts"]) if step.spec.stacked else 1]
        }

    @property
    def outside_rows(self) -> list[tuple[int, str, int]]:
        """Step, field of `layout.STEP`, and `Buffer.outside`, of all rows that are the caller's."""
        return [
            (index, name, buffer.outside)
            for index, step in enumerate(self.steps)
            for name, buffer in _rows_of(step)
            if buffer.outside >= 0
        ]

    def arena_bytes(self, capacity: int, threads: int) -> int:
        """Bytes of memory for batches of up to `capacity` tokens."""
        return sum(self.slots) * capacity + self.local_bytes * threads

    def table(self, at: Addresses, capacity: int, threads: int) -> NDArray[np.void]:
        """Write the steps down -> `layout.STEP` `[steps]`; addresses of the caller's rows are left out."""
        starts = at.arena + capacity * np.concatenate([[0], np.cumsum(self.slots)])
        table = np.zeros(len(self.steps), STEP)
        following = (0, 0)
        for row, step in zip(reversed(table), reversed(self.steps), strict=True):
            row["kernel"], row["shared"] = at.kernels.operations[step.spec.name], step.spec.shared
            row["barrier"], row["wanted"] = step.barrier, step.wanted
            row["fused"], row["per_token"] = step.fused, step.per_token
            for name, buffer in _rows_of(step):
                if buffer.local >= 0:
                    row[name] = starts[-1] + buffer.local, 0, self.local_bytes
                else:
                    address = starts[buffer.slot] if buffer.slot >= 0 else 0
                    row[name] = address, buffer.row_bytes, 0
            if step.spec.stacked:
                row["weight"] = at.stacks[step.weights]
            elif step.weights:
                for operand, tensor in zip(step.spec.weights, step.weights, strict=False):
                    row[operand] = at.weights[tensor].data
                weight = at.weights[step.weights[0]]
                row["row_scales"], row["kind"] = weight.row_scales, KINDS[weight.kind].code
            if step.constant:
                row["constant"] = at.constants[step.constant]
            if step.cache >= 0:
                row["cache_offset"] = at.cache_offsets[step.cache]
            if step.spec.state:
                row["advance"] = at.kernels.advances[step.spec.name]
            units, unit_bytes = step.state.units, 4 * step.state.floats
            row["state_offset"], row["units"], row["unit_bytes"] = step.state_offset, units, unit_bytes
            for name, number in step.fields.items():
                row[name] = number
            if step.spec.product:
                kind = at.weights[step.weights[0]].kind
                row["product"], row_bits = at.kernels.products[kind], int(row["in_columns"]) * KINDS[kind].bits
                row["tiles"] = _tiles_at_once(int(row["out_columns"]), row_bits, threads)
                # Which experts come next, nobody knows yet.
                following = (0, 0) if step.spec.stacked else (row["weight"], int(row["out_columns"] * row_bits) // 8)
            row["prefetch"], row["prefetch_bytes"] = following
        return table


def _rows_of(step: Step) -> Iterator[tuple[str, Buffer]]:
    """Field of `layout.STEP` and buffer, of what a step writes and reads."""
    return zip(("out", "a", "b", "c"), (step.output, *step.inputs), strict=False)


def _tiles_at_once(rows: int, row_bits: float, threads: int) -> int:
    most = min(int(CHUNK_BYTES // row_bits), grid(rows, 1)[0] // (4 * threads))
    return max(ROW_TILES, most - most % ROW_TILES)


def plan(program: Program, kinds: Mapping[str, str]) -> Plan:
    """Lower a program.

    Parameters
    ----------
    program : Program
        The recorded forward pass.
    kinds : mapping of str to str
        The kind of each of its tensors: packed kinds take quantized activations.
    """
    lowering = _Lowering(kinds)
    lowering.buffers |= {value.index: _buffer(value) for value in program.inputs}
    for operation in program.operations:
        lowering.add(operation)
    if program.logits.selected:
        lowering.choose(program.logits)
    steps = lowering.steps
    for number, value in enumerate((*program.inputs, *program.outputs)):
        lowering.buffers[value.index].outside = number
    _place_barriers(steps)
    _fuse(steps)
    slots, local_bytes = assign_memory(steps)
    return Plan(tuple(steps), tuple(slots), local_bytes, tuple(lowering.cache_layers), _place_states(steps))


class _Lowering:
    """Makes steps of operations."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.steps: list[Step] = []
        self.cache_layers: list[CacheLayer] = []
        self.buffers: dict[int, Buffer] = {}
        """Of each value, by its index."""
        self._kinds = kinds
        self._quantized: dict[int, Buffer] = {}
        self._gathers: dict[int, Operation] = {}
        """The operation of each value whose rows are gathered, and which of them have their f32 rows."""
        self._gathered: set[int] = set()
        self._caches: dict[int, int] = {}
        """Of each cache, by its index: its place in `cache_layers`."""

    def add(self, operation: Operation) -> None:
        """Append the steps of an operation whose inputs have theirs."""
        spec, inputs, output = operation.spec, operation.inputs, operation.output
        self.buffers[output.index] = _buffer(output)
        if spec.name == "gather":  # its step comes when it is known whether packed weights read it
            self._gathers[output.index] = operation
            return
        packed = spec.product and self._is_packed(operation)
        buffers = tuple(
            self._quantize(value) if packed and place == "x" else self._buffer_of(value)
            for place, value in zip(spec.inputs, inputs, strict=True)
        )
        sides = zip(("out_columns", "in_columns"), (output, *inputs), strict=False)
        fields = {name: value.columns for name, value in sides if isinstance(value, Value)}
        self.steps.append(
            Step(
                spec,
                self.buffers[output.index],
                buffers,
                isinstance(output, Value) and output.selected,
                output.per_token if isinstance(output, Value) else 1,
                operation.tensors,
                operation.constant,
                fields | {name: _number(name, value) for name, value in operation.parameters.items()},
                self._cache(output, *inputs),
            )
        )

    def choose(self, logits: Value) -> None:
        """Append the steps that choose the next tokens of sequences, where a pass is asked to."""
        rows, fields = self.buffers[logits.index], {"in_columns": logits.columns}
        maxima = Buffer(_padded(4 * -(-logits.columns // BLOCK)))
        for name, output, inputs in (("block_maxima", maxima, (rows,)), ("choose", Buffer(), (rows, maxima))):
            self.steps.append(Step(OPERATIONS[name], output, inputs, wanted=True, fields=dict(fields)))

    def _is_packed(self, operation: Operation) -> bool:
        """Whether a product's weights are packed: those of experts all are, or none."""
        matrices = operation.tensors[: operation.parameters.get("experts", 1)]
        packed = {bool(KINDS[self._kinds[name]].block_bytes) for name in matrices}
        if len(packed) > 1:
            raise UnsupportedError(f"some experts like {matrices[0]!r} are packed, some are not; convert them alike")
        return packed == {True}

    def _buffer_of(self, value: Value | Cache | Assignment) -> Buffer:
        """The f32 rows of a value; where they are gathered, the first that asks for them appends the step."""
        buffer = self.buffers[value.index]
        if value.index in self._gathers and value.index not in self._gathered:
            self._gathered.add(value.index)
            x, _ = self._gathers[value.index].inputs
            self._gather(value.index, self._buffer_of(x), buffer)
        return buffer

    def _quantize(self, x: Value | Cache | Assignment) -> Buffer:
        """The int8 activations of a value; the first that asks for them appends their step."""
        assert isinstance(x, Value)
        if x.index not in self._quantized:
            packed = self._quantized[x.index] = Buffer(packed_bytes(x.columns), x.per_token)
            if x.index in self._gathers:
                self._gather(x.index, self._quantize(self._gathers[x.index].inputs[0]), packed)
            else:
                inputs, fields = (self._buffer_of(x),), {"in_columns": x.columns}
                spec = OPERATIONS["quantize"]
                self.steps.append(Step(spec, packed, inputs, x.selected, x.per_token, fields=dict(fields)))
        return self._quantized[x.index]

    def _gather(self, index: int, source: Buffer, target: Buffer) -> None:
        """Append the step that copies each token's row, as f32 or as int8 activations, to its rows."""
        operation = self._gathers[index]
        _, assigned = operation.inputs
        inputs, fields = (source, self.buffers[assigned.index]), {**operation.parameters, "row_bytes": target.row_bytes}
        self.steps.append(Step(operation.spec, target, inputs, per_token=target.per_token, fields=fields))

    def _cache(self, *values: Value | Cache | Assignment) -> int:
        """Place in `cache_layers` of the cache among the values; -1 if there is none."""
        for cache in values:
            if isinstance(cache, Cache):
                if cache.index not in self._caches:
                    self._caches[cache.index] = len(self.cache_layers)
                    self.cache_layers.append(CacheLayer(cache.kv_heads, cache.head_dim, cache.v_head_dim))
                return self._caches[cache.index]
        return -1


def _buffer(value: Value | Cache | Assignment) -> Buffer:
    if isinstance(value, Cache):
        return Buffer()
    if isinstance(value, Assignment):
        return Buffer(_padded(table_bytes(value.experts, value.top_k)))
    return Buffer(_padded(4 * value.columns), value.per_token)


def _padded(size: int) -> int:
    return -(-size // (4 * LINE_FLOATS)) * 4 * LINE_FLOATS


_NAMES = {"activation": ACTIVATIONS, "scoring": SCORINGS}
"""Parameters that are names: a step holds the place of one among these."""


def _number(parameter: str, value: Any) -> float:
    number: float = _NAMES[parameter].index(value) if parameter in _NAMES else value
    return number


def _place_states(steps: Sequence[Step]) -> int:
    """Give each step that keeps a state its place in a sequence's; returns the bytes of all of them."""
    end = 0
    for step in steps:
        step.state_offset = end
        end += step.state.nbytes
    return end


def _place_barriers(steps: Sequence[Step]) -> None:
    """Put a barrier before each step that could meet another thread's work since the last one."""
    since: list[Step] = []
    fused: list[Step] = []
    """The last steps of `since` that a thread takes a token through: there it meets only what it did itself."""
    for step in steps:
        if fused and (not _fusible(step, fused[-1]) or any(each.output in step.scattered for each in fused)):
            fused = []
        step.barrier = any(_conflict(step, earlier) for earlier in since[: len(since) - len(fused)])
        if step.barrier:
            since, fused = [], []
        since.append(step)
        fused.append(step)


def _conflict(later: Step, earlier: Step) -> bool:
    return earlier.output in (later.output, *later.inputs) or later.output in earlier.inputs


def _fusible(step: Step, earlier: Step) -> bool:
    """Whether both are token steps of the same rows."""
    same_rows = (step.wanted, step.per_token) == (earlier.wanted, earlier.per_token)
    return same_rows and not step.spec.shared and not earlier.spec.shared


def _fuse(steps: Sequence[Step]) -> None:
    """Fuse token steps that no barrier parts: `fused` counts them from each step on."""
    for step, following in reversed(list(pairwise(steps))):
        step.fused = 1 if following.barrier or not _fusible(following, step) else following.fused + 1
