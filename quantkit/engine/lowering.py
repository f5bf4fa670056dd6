"""From a recorded program to the table that the compiled interpreter walks.

Lowering makes four decisions, each once for a model: activations are quantized once for all packed matrices that read
them; keys and values are stored before they are attended to; threads meet only where one reads what another wrote; and
values whose lives no barrier mixes share memory. `quantkit.models.recorder` says what is computed,
`quantkit_kernels.interpreter.table` what a row means, and `model.py` runs the result. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.kv_cache import CacheLayer
from quantkit.models.recorder import ACTIVATIONS, Operation, Program, Value
from quantkit_kernels.blocks import KINDS, grid
from quantkit_kernels.interpreter.table import FIELDS, FLOATS, SHARED, Field, Opcode
from quantkit_kernels.linear.activations import packed_bytes
from quantkit_kernels.linear.packed import ROW_TILES

IN_PLACE = frozenset({Opcode.SCALE, Opcode.ADD, Opcode.RMS_NORM, Opcode.GATED, Opcode.ROPE})
"""Token steps whose output may be the row that they read."""
CACHED = frozenset({Opcode.STORE_KV, Opcode.ATTENTION})
"""Steps that store or read keys and values."""
LINE_FLOATS = 16
"""Rows of values are padded to whole cache lines of f32."""
CHUNK_BYTES = 64 * 1024
"""Weights that a thread takes at once: long enough to stream, short enough that threads finish together."""


@dataclass(eq=False)
class Buffer:
    """Memory of one value: `token_bytes` for each token of a batch; none for what lives elsewhere (logits, KV
    cache)."""

    token_bytes: int = 0
    slot: int = -1
    """Which piece of the arena holds it."""
    own: int = -1
    """Where it lies in each thread's own memory, if it lives only inside a run of token steps: one row is enough."""


@dataclass
class Step:
    """One row of the table, before addresses are known."""

    opcode: Opcode
    output: Buffer
    inputs: tuple[Buffer, ...]
    wanted: bool = False
    weight: str | None = None
    bias: str | None = None
    numbers: dict[Field, int | float] = field(default_factory=dict)
    barrier: bool = False
    run: int = 1
    """Steps from here on that a thread takes a token through, one after the other, before the next token."""
    cache: int = 0
    """Index in `Plan.cache_layers`, for the steps that store or read keys and values."""
    name: str = ""
    """Module or operation, for people."""


@dataclass(frozen=True)
class Weight:
    """Where a tensor lies: addresses of checked memory that somebody keeps alive."""

    kind: str
    data: int
    row_scales: int = 0


@dataclass(frozen=True)
class Plan:
    """What a pass does.

    Attributes
    ----------
    steps : tuple of Step
        In order.
    slots : tuple of int
        Bytes per token of each slot of the arena.
    own_bytes : int
        Bytes of each thread's own memory.
    cache_layers : tuple of CacheLayer
        What the steps keep of a position in the KV cache.
    """

    steps: tuple[Step, ...]
    slots: tuple[int, ...]
    own_bytes: int
    cache_layers: tuple[CacheLayer, ...]

    def arena_bytes(self, capacity: int, threads: int) -> int:
        """Bytes of memory for batches of up to `capacity` tokens."""
        return sum(self.slots) * capacity + self.own_bytes * threads

    def table(
        self, weights: Mapping[str, Weight], arena: int, capacity: int, threads: int, cache_offsets: Sequence[int]
    ) -> NDArray[np.int64]:
        """Fill in addresses, and the byte offset in a KV page of each of `cache_layers` -> int64 `[steps, FIELDS]`."""
        starts = arena + capacity * np.concatenate([[0], np.cumsum(self.slots)])
        table = np.zeros((len(self.steps), FIELDS), np.int64)
        ahead = (0, 0)
        for row, step in zip(reversed(table), reversed(self.steps), strict=True):
            row[Field.OPCODE], row[Field.BARRIER], row[Field.WANTED] = step.opcode, step.barrier, step.wanted
            row[Field.RUN] = step.run
            places = ((Field.OUT, step.output), *zip((Field.A, Field.B), step.inputs, strict=False))
            for place, buffer in places:
                if buffer.own >= 0:
                    row[place : place + 3] = starts[-1] + buffer.own, 0, self.own_bytes
                elif buffer.slot >= 0:
                    row[place : place + 3] = starts[buffer.slot], buffer.token_bytes, 0
            if step.weight is not None:
                weight = weights[step.weight]
                row[Field.WEIGHT], row[Field.ROW_SCALES] = weight.data, weight.row_scales
                row[Field.KIND] = KINDS[weight.kind].code
            if step.bias is not None:
                row[Field.BIAS] = weights[step.bias].data
            if step.opcode in CACHED:
                row[Field.CACHE_OFFSET] = cache_offsets[step.cache]
            for place, number in step.numbers.items():
                row[place] = np.float32(number).view(np.int32) if place in FLOATS else number
            if step.opcode is Opcode.LINEAR:
                bits = KINDS[weights[step.weight or ""].kind].bits
                row[Field.CHUNK] = _chunk(step, bits, threads)
                ahead = row[Field.WEIGHT], int(row[Field.ROWS] * row[Field.COLUMNS] * bits) // 8
            row[Field.AHEAD], row[Field.AHEAD_BYTES] = ahead
        return table


def _chunk(step: Step, bits: float, threads: int) -> int:
    tiles = grid(int(step.numbers[Field.ROWS]), 1)[0]
    tile_bytes = step.numbers[Field.COLUMNS] * bits
    most = min(int(CHUNK_BYTES // tile_bytes), tiles // (4 * threads))
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
    lowering = _Lowering(program, kinds)
    steps = lowering.steps
    _place_barriers(steps)
    _join_runs(steps)
    slots, own_bytes = _assign_memory(steps)
    return Plan(tuple(steps), tuple(slots), own_bytes, tuple(lowering.cache_layers))


class _Lowering:
    """Turns operations into steps, one method for each operation that is more than a row."""

    def __init__(self, program: Program, kinds: Mapping[str, str]) -> None:
        self.steps: list[Step] = []
        self.cache_layers: list[CacheLayer] = []
        self._kinds = kinds
        self._logits = program.logits
        self._buffers: dict[int, Buffer] = {}
        self._quantized: dict[int, Buffer] = {}
        self._caches: dict[int, tuple[int, Buffer]] = {}
        """For each layer its index in `cache_layers`, and what stands for its keys and values in the steps."""
        for operation in program.operations:
            getattr(self, f"_{operation.name}", self._simple)(operation)

    def _buffer(self, value: Value) -> Buffer:
        if value.index == self._logits.index:
            return self._buffers.setdefault(value.index, Buffer())
        columns = -(-value.columns // LINE_FLOATS) * LINE_FLOATS
        return self._buffers.setdefault(value.index, Buffer(4 * columns))

    def _append(
        self,
        opcode: Opcode,
        operation: Operation,
        inputs: Sequence[Value],
        numbers: dict[Field, int | float],
        weight: str | None = None,
    ) -> None:
        output = self._buffer(operation.output)
        buffers = tuple(self._buffer(value) for value in inputs)
        name = operation.tensors[0] if operation.tensors else operation.name
        self.steps.append(Step(opcode, output, buffers, operation.output.selected, weight, numbers=numbers, name=name))

    def _simple(self, operation: Operation) -> None:
        opcode, names = _SIMPLE[operation.name]
        numbers: dict[Field, int | float] = {Field.COLUMNS: operation.output.columns}
        numbers |= {place: operation.parameters[name] for name, place in names.items()}
        weight = operation.tensors[0] if operation.tensors else None
        self._append(opcode, operation, operation.inputs, numbers, weight)

    def _gated(self, operation: Operation) -> None:
        activation = ACTIVATIONS.index(operation.parameters["activation"])
        numbers: dict[Field, int | float] = {Field.COLUMNS: operation.output.columns, Field.GROUP: activation}
        self._append(Opcode.GATED, operation, operation.inputs, numbers)

    def _rope(self, operation: Operation) -> None:
        x, rotation = operation.inputs
        numbers: dict[Field, int | float] = {Field.COLUMNS: x.columns, Field.SIZE: rotation.columns}
        self._append(Opcode.ROPE, operation, operation.inputs, numbers)

    def _rotation(self, operation: Operation) -> None:
        frequencies = operation.parameters["inverse_frequencies"]
        numbers: dict[Field, int | float] = {
            Field.SIZE: len(frequencies),
            Field.FACTOR: operation.parameters["factor"],
        }
        self._append(Opcode.ROTATION, operation, (), numbers, rotation_name(operation))

    def _linear(self, operation: Operation) -> None:
        (x,) = operation.inputs
        weight = operation.tensors[0]
        source = self._quantize(x) if KINDS[self._kinds[weight]].block_bytes else self._buffer(x)
        self.steps.append(
            Step(
                Opcode.LINEAR,
                self._buffer(operation.output),
                (source,),
                operation.output.selected,
                weight,
                operation.tensors[1] if len(operation.tensors) > 1 else None,
                {Field.ROWS: operation.output.columns, Field.COLUMNS: x.columns},
                name=weight,
            )
        )

    def _quantize(self, x: Value) -> Buffer:
        if x.index not in self._quantized:
            packed = Buffer(packed_bytes(x.columns))
            self._quantized[x.index] = packed
            numbers: dict[Field, int | float] = {Field.COLUMNS: x.columns}
            inputs = (self._buffer(x),)
            self.steps.append(Step(Opcode.QUANTIZE, packed, inputs, x.selected, numbers=numbers, name="quantize"))
        return self._quantized[x.index]

    def _attention(self, operation: Operation) -> None:
        q, k, v = operation.inputs
        parameters = operation.parameters
        head_dim = parameters["head_dim"]
        kv_heads = k.columns // head_dim
        index, cache = self._cache(parameters["layer"], CacheLayer(kv_heads, head_dim))
        numbers: dict[Field, int | float] = {Field.SIZE: head_dim, Field.KV_HEADS: kv_heads}
        attend = {
            Field.GROUP: q.columns // k.columns,
            Field.WINDOW: parameters["window"],
            Field.FACTOR: parameters["scale"],
        }
        inputs = (self._buffer(q), cache)
        output = self._buffer(operation.output)
        stored = (self._buffer(k), self._buffer(v))
        self.steps += [
            Step(Opcode.STORE_KV, cache, stored, numbers=numbers, cache=index, name="store_kv"),
            Step(Opcode.ATTENTION, output, inputs, numbers=numbers | attend, cache=index, name="attention"),
        ]

    def _cache(self, layer: int, shape: CacheLayer) -> tuple[int, Buffer]:
        """Index in `cache_layers`, and buffer, of a layer of the program."""
        if layer not in self._caches:
            self._caches[layer] = len(self.cache_layers), Buffer()
            self.cache_layers.append(shape)
        index, cache = self._caches[layer]
        if self.cache_layers[index] != shape:
            raise ValueError(f"layer {layer} keeps {self.cache_layers[index]} and {shape}")
        return index, cache


_SIMPLE: Mapping[str, tuple[Opcode, Mapping[str, Field]]] = {
    "embed": (Opcode.EMBED, {}),
    "scale": (Opcode.SCALE, {"factor": Field.FACTOR}),
    "add": (Opcode.ADD, {}),
    "rms_norm": (Opcode.RMS_NORM, {"size": Field.SIZE, "eps": Field.EPS, "offset": Field.OFFSET}),
    "select": (Opcode.SELECT, {}),
}
"""Operations that are one row: their opcode, and where their parameters go."""


def rotation_name(operation: Operation) -> str:
    """Name under which the inverse frequencies of a rotation stand among the weights."""
    return f"rotation.{operation.output.index}"


def _place_barriers(steps: Sequence[Step]) -> None:
    """Put a barrier before each step that could meet another thread's work since the last one."""
    since: list[Step] = []
    run: list[Step] = []
    """The last steps of `since` that a thread takes a token through: there it meets only what it did itself."""
    for step in steps:
        if run and not _joins(step, run[-1]):
            run = []
        step.barrier = any(_conflict(step, earlier) for earlier in since[: len(since) - len(run)])
        if step.barrier:
            since, run = [], []
        since.append(step)
        run.append(step)


def _conflict(later: Step, earlier: Step) -> bool:
    return earlier.output in (later.output, *later.inputs) or later.output in earlier.inputs


def _joins(step: Step, earlier: Step) -> bool:
    """Whether both are token steps of the same tokens."""
    return step.wanted == earlier.wanted and not {step.opcode, earlier.opcode} & SHARED


def _join_runs(steps: Sequence[Step]) -> None:
    """Join token steps that no barrier parts: `run` counts them from each step on."""
    for step, following in reversed(list(pairwise(steps))):
        step.run = 1 if following.barrier or not _joins(following, step) else following.run + 1


def _assign_memory(steps: Sequence[Step]) -> tuple[list[int], int]:
    """Give each buffer its memory; returns the slots' bytes per token and the bytes of a thread's own.

    A value takes the memory of another only behind a barrier, so that sharing memory never asks for one; or in place,
    row by row.
    """
    last_use = {buffer: index for index, step in enumerate(steps) for buffer in (step.output, *step.inputs)}
    section = list(accumulate(step.barrier for step in steps))
    slots: list[int] = []
    free_from: list[int] = []
    """For each slot the first section in which it may be taken."""
    own = own_bytes = 0
    for index, step in enumerate(steps):
        output = step.output
        if not output.token_bytes or output.slot >= 0:
            continue
        own = own if index and steps[index - 1].run > 1 else 0
        in_place = [
            x for x in step.inputs if x.slot >= 0 and last_use[x] == index and x.token_bytes == output.token_bytes
        ]
        if last_use[output] < index + step.run:
            output.own = own
            own += output.token_bytes
            own_bytes = max(own_bytes, own)
            continue
        if in_place and step.opcode in IN_PLACE:
            output.slot = in_place[0].slot
        else:
            free = [slot for slot, first in enumerate(free_from) if first <= section[index]]
            output.slot = _take_slot(slots, free, output.token_bytes)
            free_from[len(free_from) :] = [0] * (len(slots) - len(free_from))
        free_from[output.slot] = section[last_use[output]] + 1
    return slots, own_bytes


def _take_slot(slots: list[int], free: list[int], size: int) -> int:
    """The smallest free slot that is large enough, else the largest one, grown, else a new one."""
    if not free:
        slots.append(size)
        return len(slots) - 1
    fitting = [slot for slot in free if slots[slot] >= size]
    slot = min(fitting, key=slots.__getitem__) if fitting else max(free, key=slots.__getitem__)
    slots[slot] = max(slots[slot], size)
    return slot
