"""A model ready to run, and batches of tokens run through its program.

It owns the arena of values, the weights' addresses, the KV pages and the worker threads, cuts batches into passes, and
hands each to the compiled interpreter. What is computed is in the program (`quantkit.models`, `lowering.py`); how, in
`quantkit_kernels`; sampling and text are `quantkit.generation`'s.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Batch
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.engine.kv_cache import CacheShape, PagePool, Sequence
from quantkit.engine.logits_rows import LogitsRows
from quantkit.engine.lowering import LINE_FLOATS, Addresses, Plan, Weight, plan
from quantkit.engine.sequence_state import STATELESS, StatePool
from quantkit.engine.workers import WorkerPool
from quantkit.errors import GenerationError, OptionError
from quantkit.models.program import Program, Value
from quantkit.tensor import Tensor
from quantkit_kernels.attention.operands import scratch_bytes
from quantkit_kernels.attention.pages import CODES as KV_CODES
from quantkit_kernels.attention.sharing import SPAN_BYTES, partials_bytes
from quantkit_kernels.blocks import dequantize
from quantkit_kernels.interpreter.kernels import compiled
from quantkit_kernels.interpreter.layout import CHUNK
from quantkit_kernels.rows.choice import Chooser, choose

PASS_TOKENS = 256
"""Tokens of one pass at most: enough to reuse each weight, few enough that values stay in cache."""


class Weights(Protocol):
    """What a model asks of the source of its weights; a `ModelSource` has it, and more."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What `config.json` says."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, packed or not; its memory lives as long as the tensor does."""


_Chunk = tuple[Sequence, list[int], int, Chooser | None]
"""Some consecutive new tokens of one sequence, in one pass; how many of them, the last ones, need logits; and what
chooses the next token by those of the last."""


class Model:
    """A model ready to run. All its methods may be called from many threads at once; passes run one after the other.

    Not made directly: `quantkit.load` and `quantkit.load_model` do.

    Parameters
    ----------
    program : Program
        Its recorded forward pass.
    source : Weights
        Where the tensors come from, packed or not; kept open as long as the model lives.
    context_length : int
        Tokens that a sequence may hold.
    threads : int
        Threads that share the work, the caller's included.
    kv_kind : {"int16", "int8", "f32"}
        Precision of the KV cache.
    """

    def __init__(
        self, program: Program, source: Weights, *, context_length: int, threads: int, kv_kind: str = "int16"
    ) -> None:
        if threads < 1:
            raise OptionError(f"threads: {threads} is not a positive number")
        if context_length < 1:
            raise OptionError(f"context: {context_length} is not a positive number")
        learned = program.learned_positions
        if learned is not None and context_length > learned:
            raise OptionError(
                f"context: {context_length} is more than the {learned} positions that the model has learned"
            )
        if kv_kind not in KV_CODES:
            raise OptionError(f"kv kind {kv_kind!r}: known are {', '.join(KV_CODES)}")
        self.config: Mapping[str, Any] = source.config
        self.program = program
        self.context_length = context_length
        self.threads = threads
        self._tensors = {name: source.tensor(name) for name in program.tensors}
        self._plan = plan(program, {name: tensor.kind for name, tensor in self._tensors.items()})
        self._keep: list[NDArray[Any]] = []
        self._pages = PagePool(CacheShape(kv_kind, self._plan.cache_layers))
        self._states = StatePool(self._plan.state_bytes) if self._plan.state_bytes else None
        self._lock = self._pages.lock
        self._table = self._plan.table(self._addresses(), PASS_TOKENS, threads)
        self._outside = [
            (self._table[name]["address"][index:][:1].data, number) for index, name, number in self._plan.outside_rows
        ]
        self._ids = memoryview(bytearray(8 * PASS_TOKENS)).cast("q")
        self._chunks = memoryview(bytearray(CHUNK.itemsize * PASS_TOKENS)).cast("q")
        self._vocab_size, self._columns = program.vocab_size, program.logits.columns
        self._logits = LogitsRows(self._columns, row_stride(program.logits))
        self._pool = WorkerPool(threads)
        self._describe_passes(kv_kind)

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows: 0 and up, below this number."""
        return self.program.vocab_size

    @property
    def plan(self) -> Plan:
        """The steps of a pass."""
        return self._plan

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights, by name."""
        return MappingProxyType(self._tensors)

    @property
    def cache_shape(self) -> CacheShape:
        """What a position of the KV cache needs."""
        return self._pages.shape

    @property
    def state_bytes(self) -> int:
        """Bytes that recurrent layers keep of a sequence, however long it is."""
        return self._plan.state_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that are read to decode one token.

        Rows of untied embeddings, and experts that the token does not go to, are not.
        """
        share = {
            name: step.per_token / step.fields["experts"] if step.spec.stacked else 1
            for step in self._plan.steps
            if not step.spec.looks_up
            for name in step.weights
        }
        return round(sum(tensor.nbytes * share.get(name, 0) for name, tensor in self._tensors.items()))

    def new_sequence(self) -> Sequence:
        """Begin an empty sequence."""
        return Sequence(self._pages, self.context_length, self._states)

    def __call__(self, token_ids: Batch[int]) -> NDArray[np.float32]:
        """Return the logits of every token of one text -> f32 `[T, vocab_size]`."""
        with self.new_sequence() as sequence:
            return self.forward([(sequence, token_ids)], every=True)

    def forward(
        self, batch: Batch[tuple[Sequence, Batch[int]]], *, every: bool = False, chunk: int = PASS_TOKENS
    ) -> NDArray[np.float32]:
        """Append tokens to sequences and return logits.

        The logits of a token depend on its own sequence alone: not on the batch, the chunks or the threads, to the last
        bit. The last ones of a sequence that has a `choice` are given to it.

        Parameters
        ----------
        batch : sequence of (Sequence, token ids)
            New tokens, in order, for each of some different sequences of this model.
        every : bool
            Logits of every new token -> f32 `[all tokens, vocab_size]`, batch entries one after the other; else of each
            entry's last token -> f32 `[len(batch), vocab_size]`.
        chunk : int
            Most tokens of one pass, at most `PASS_TOKENS`.

        Raises
        ------
        GenerationError
            An entry has no tokens, a token is outside the vocabulary, a sequence is of another model, stands in the
            batch twice, has another's choice or would outgrow the context, or the model is closed; nothing is computed.
        """
        if not 1 <= chunk <= PASS_TOKENS:
            raise OptionError(f"chunk: {chunk} is not in 1..{PASS_TOKENS}")
        new: dict[Sequence, list[int]] = {}
        for sequence, ids in batch:
            if not isinstance(sequence, Sequence) or sequence.pool is not self._pages:
                raise GenerationError("the batch holds no sequence of this model: `new_sequence` makes them")
            new[sequence] = self._checked(ids)
        if len(new) < len(batch):
            raise GenerationError("a sequence stands in the batch twice")
        choosers = [sequence.choice for sequence in new if sequence.choice] if len(new) > 1 else []
        if len(set(choosers)) < len(choosers):
            raise GenerationError("two sequences of the batch have the same choice: each needs memory of its own")
        rows = sum(map(len, new.values())) if every else len(new)
        with self._lock:
            if self._pool.closed:
                raise GenerationError("the model is closed")
            for sequence, ids in new.items():
                sequence.reserve(len(ids))
            _, logits, place = self._logits.take(rows)
            for chunks in _passes(new, every, chunk):
                place += self._logits.row_bytes * self._run(chunks, [place])
        return logits

    def compute(
        self, token_ids: Batch[int], inputs: Batch[NDArray[np.float32]], outputs: Batch[NDArray[np.float32]]
    ) -> None:
        """Run a text, from its beginning, through a part of a program, and want all of its tokens.

        Parameters
        ----------
        token_ids : sequence of int
        inputs, outputs : sequence of ndarray
            Rows of `program.inputs`, which are read, and of `program.outputs`, which are written; shaped as by
            `empty_rows`. Where a token has several rows, those of each `PASS_TOKENS` tokens are sorted by expert.
        """
        tokens = self._checked(token_ids)
        values, arrays = (*self.program.inputs, *self.program.outputs), (*inputs, *outputs)
        for value, given in zip(values, arrays, strict=True):
            shape = empty_rows(value, len(tokens)).shape
            if (given.shape, given.dtype, given.flags.c_contiguous) != (shape, np.dtype(np.float32), True):
                raise ValueError(f"rows of {value} are not f32 {shape}")
        with self._lock, self.new_sequence() as sequence:
            sequence.reserve(len(tokens))
            for chunks in _passes({sequence: tokens}, True, PASS_TOKENS):
                first = sequence.length
                skipped = [first * value.per_token for value in values]
                pairs = zip(arrays, skipped, strict=True)
                self._run(chunks, [given.ctypes.data + rows * given.strides[0] for given, rows in pairs])

    @contextlib.contextmanager
    def time_steps(self) -> Iterator[NDArray[np.int64]]:
        """Time every step of the passes that run inside the `with`; costs them a few percent.

        Yields
        ------
        ndarray
            int64 `[threads, len(plan.steps) + 1, 2]`, summed over the passes: nanoseconds that each thread waited
            before each step, and that it worked on it. The last row is the end of a pass: waiting alone.
        """
        _, sums = times = np.zeros((2, self.threads, len(self._table) + 1, 2), np.int64)
        with self._lock:
            self._pool.words["times"] = times.ctypes.data
        try:
            yield sums
        finally:
            with self._lock:
                self._pool.words["times"] = 0

    def close(self) -> None:
        """End the worker threads, once the pass at hand is over; the model cannot run again."""
        with self._lock:
            self._pool.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, ids: Batch[int]) -> list[int]:
        try:
            tokens = list(map(operator.index, ids))
        except TypeError as error:
            raise GenerationError(f"token ids must be whole numbers: {error}") from None
        if not tokens:
            raise GenerationError("no tokens to run: the prompt is empty")
        size = self._vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise GenerationError(f"token id {token} is outside the vocabulary of {size}")
        return tokens

    def _run(self, chunks: list[_Chunk], outside: list[int]) -> int:
        """Run one pass over the caller's rows at some addresses; returns how many tokens it wanted.

        Its inputs are written number by number: between passes little is in the caches, and code that was not run just
        before, as that of numpy and other libraries, takes many times as long as it does in a loop.
        """
        token = place = wanted = 0
        for sequence, ids, last, chooser in chunks:
            state = sequence.state.begin(len(ids)) if sequence.state else STATELESS
            choice = chooser.address(self._columns) if chooser else 0
            for field in (token, len(ids), sequence.length, sequence.address, last, *state, choice):
                self._chunks[place] = field
                place += 1
            for each in ids:
                self._ids[token] = each
                token += 1
            wanted += last
        for address, number in self._outside:
            address[0] = outside[number]
        self._pool.run(len(chunks))
        for sequence, ids, _, _ in chunks:
            sequence.advance(ids)
        return wanted

    def _describe_passes(self, kv_kind: str) -> None:
        """Write what is the same for all passes."""
        words = self._pool.words
        attention = [step.fields for step in self._plan.steps if step.spec.name == "attention"]
        sizes = ("heads_per_kv", "head_dim", "v_head_dim")
        scratch = max((scratch_bytes(*(int(each[name]) for name in sizes)) for each in attention), default=0)
        words["steps"], words["step_count"] = self._table.ctypes.data, len(self._table)
        for name, memory in (("ids", self._ids), ("chunk_table", self._chunks)):
            words[name] = np.frombuffer(memory, np.uint8).ctypes.data
        for name in ("positions", "pages", "wanted_tokens"):
            words[name] = self._memory(8 * PASS_TOKENS)
        words["span_table"] = self._memory(SPAN_BYTES * PASS_TOKENS)
        words["counters"] = self._memory(8 * (self.threads + 1) * (len(self._table) + 1))
        words["scratch"], words["scratch_bytes"] = self._memory(scratch * self.threads), scratch
        words["partials"] = self._memory(partials_bytes(self.threads))
        words["choose"], words["kv_kind"] = choose.address, KV_CODES[kv_kind]

    def _addresses(self) -> Addresses:
        """Where everything lies; vectors are small and become padded f32."""
        weights = {}
        for name, tensor in self._tensors.items():
            spec = self.program.tensors[name]
            if spec.is_vector:
                numbers = dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape)
                # Several numbers of each channel meet whole rows: the first of all channels, then the second.
                rows = numbers.reshape(len(numbers), -1).T if spec.role == "channels" else numbers.ravel()
                weights[name] = Weight("f32", self._vector(rows))
            else:
                weights[name] = _matrix(tensor)
        operations = {step.spec.name for step in self._plan.steps}
        kernels = compiled(operations, {weights[name].kind for name in self._plan.matrices}, self.threads)
        stacks = {
            names: self._stack([weights[name] for name in names], experts, kernels.products)
            for names, experts in self._plan.stacks.items()
        }
        constants = {constant: self._vector(np.array(constant, np.float32)) for constant in self._plan.constants}
        arena = self._memory(self._plan.arena_bytes(PASS_TOKENS, self.threads))
        return Addresses(kernels, weights, stacks, constants, arena, self._pages.shape.layer_offsets)

    def _stack(self, weights: list[Weight], experts: int, products: Mapping[str, int]) -> int:
        """Address of the table of the experts' weights, and of their biases, which come behind them."""
        biases = [weight.data for weight in weights[experts:]] or [0] * experts
        rows = [
            (weight.data, weight.row_scales, bias, products[weight.kind])
            for weight, bias in zip(weights[:experts], biases, strict=True)
        ]
        table = np.array(rows, np.int64)
        self._keep.append(table)
        return int(table.ctypes.data)

    def _vector(self, values: NDArray[np.float32]) -> int:
        columns = values.shape[-1]
        padded = np.zeros((*values.shape[:-1], -(-columns // LINE_FLOATS) * LINE_FLOATS), np.float32)
        padded[..., :columns] = values
        self._keep.append(padded)
        return int(padded.ctypes.data)

    def _memory(self, size: int) -> int:
        """Address of `size` zero bytes on a cache line that live as long as the model."""
        memory = np.zeros(size + 64, np.uint8)
        self._keep.append(memory)
        return int(memory.ctypes.data + -memory.ctypes.data % 64)


def row_stride(value: Value) -> int:
    """Numbers from one row of a value to the next."""
    return -(-value.columns // LINE_FLOATS) * LINE_FLOATS


def empty_rows(value: Value, tokens: int) -> NDArray[np.float32]:
    """Return memory for the rows of a value, of so many tokens; columns are padded to whole cache lines."""
    return np.empty((tokens * value.per_token, row_stride(value)), np.float32)


def _matrix(tensor: Tensor) -> Weight:
    row_scales = 0 if tensor.row_scales is None else tensor.row_scales.ctypes.data
    return Weight(tensor.kind, tensor.data.ctypes.data, row_scales)


def _passes(batch: Mapping[Sequence, list[int]], every: bool, chunk: int) -> list[list[_Chunk]]:
    """Cut sequences with their new tokens into passes of at most `chunk` tokens.

    Before its new tokens, which alone are wanted, a sequence may have some that it computes once more.
    """
    passes: list[list[_Chunk]] = []
    room = 0
    for sequence, new in batch.items():
        behind = sequence.take_behind() if sequence.state else []
        begin, ids = 0, behind + new
        while begin < len(ids):
            if not room:
                passes.append([])
                room = chunk
            part = ids[begin : begin + room]
            begin, room = begin + len(part), room - len(part)
            last = begin == len(ids)
            wanted = max(0, min(len(part), begin - len(behind))) if every else int(last)
            passes[-1].append((sequence, part, wanted, sequence.choice if last else None))
    return passes
