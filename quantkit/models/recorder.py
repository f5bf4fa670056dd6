"""The program: the flat list of operations that a forward pass recorded.

An architecture file calls the methods of `Recorder` as if it computed; each call appends one `Operation`. The result, a
`Program`, knows every operation in order and every tensor it needs with its shape and role, so the same recording
checks a checkpoint, plans memory and runs.

Nothing is computed here and no file is read. `models/` writes programs; `plan.py` lowers one to the table that the
compiled interpreter walks; `convert.py` reads only the tensor list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from quantkit.tensor import Role, TensorSpec

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
"""Functions that `Recorder.gated` knows (`gelu_tanh` is Hugging Face's `gelu_pytorch_tanh`)."""


@dataclass(frozen=True)
class Value:
    """The result of an operation: f32 `[tokens, columns]`.

    `selected` values have a row only for the tokens whose logits are wanted.
    """

    index: int
    columns: int
    selected: bool = False


@dataclass(frozen=True)
class Operation:
    """One step of a program: `output = name(inputs, tensors, **parameters)`."""

    name: str
    inputs: tuple[Value, ...]
    output: Value
    tensors: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Program:
    """A recorded forward pass: token ids in, logits `[wanted tokens, vocab_size]` out."""

    operations: tuple[Operation, ...]
    tensors: Mapping[str, TensorSpec]

    @property
    def logits(self) -> Value:
        """The value that holds the logits."""
        return self.operations[-1].output

    @property
    def vocab_size(self) -> int:
        """Number of columns of the logits, and of rows of the embedding."""
        return self.logits.columns


class Recorder:
    """Records a forward pass. Shapes are `[tokens, columns]` throughout; `T` is the number of tokens of a batch.

    Tensors are named by their module, as in the checkpoint: `"model.layers.0.mlp.up_proj"` stands for the tensor
    `model.layers.0.mlp.up_proj.weight`.
    """

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._tensors: dict[str, TensorSpec] = {}

    def program(self) -> Program:
        """Return what has been recorded so far; the last operation's output is the logits."""
        return Program(tuple(self._operations), MappingProxyType(dict(self._tensors)))

    def embed(self, module: str, vocab_size: int, hidden_size: int, *, alias: str = "") -> Value:
        """Rows of the embedding table, one per token -> `[T, hidden_size]`.

        `alias` is another module under whose name a checkpoint may store the table: that of a head tied to it.
        """
        aliases = (f"{alias}.weight",) if alias else ()
        table = self._tensor(f"{module}.weight", (vocab_size, hidden_size), "embedding", aliases=aliases)
        return self._record("embed", (), hidden_size, (table,))

    def scale(self, x: Value, factor: float) -> Value:
        """`x * factor`."""
        return self._record("scale", (x,), x.columns, factor=factor)

    def add(self, a: Value, b: Value) -> Value:
        """`a + b`, both `[T, columns]`."""
        if a.columns != b.columns:
            raise ValueError(f"cannot add {a.columns} and {b.columns} columns")
        return self._record("add", (a, b), a.columns)

    def rms_norm(self, x: Value, module: str, eps: float, *, size: int | None = None, offset: float = 0.0) -> Value:
        """`x / sqrt(mean(x²) + eps) * (weight + offset)`, over every run of `size` columns (default: all of them).

        `size=head_dim` normalizes each head by itself (Qwen3); `offset=1` is Gemma's `(1 + w)`.
        """
        size = x.columns if size is None else size
        if x.columns % size:
            raise ValueError(f"{x.columns} columns do not divide into runs of {size}")
        weight = self._tensor(f"{module}.weight", (size,), "norm")
        return self._record("rms_norm", (x,), x.columns, (weight,), eps=eps, size=size, offset=offset)

    def linear(
        self,
        x: Value,
        module: str,
        rows: int,
        *,
        bias: bool = False,
        optional_bias: bool = False,
        role: Role = "linear",
    ) -> Value:
        """`x @ weight.T (+ bias)` with `weight [rows, x.columns]` -> `[T, rows]`.

        A bias that is optional stands for zeros in a checkpoint that has none.
        """
        tensors = [self._tensor(f"{module}.weight", (rows, x.columns), role)]
        if bias:
            tensors.append(self._tensor(f"{module}.bias", (rows,), "bias", optional=optional_bias))
        return self._record("linear", (x,), rows, tuple(tensors))

    def rotation(self, inverse_frequencies: tuple[float, ...], factor: float = 1.0) -> Value:
        """Cosines, then sines, of `position * inverse_frequencies`, times `factor` -> `[T, 2 * len(...)]`.

        Record it once per rope variant and share it between layers.
        """
        columns = 2 * len(inverse_frequencies)
        return self._record("rotation", (), columns, inverse_frequencies=inverse_frequencies, factor=factor)

    def rope(self, x: Value, rotation: Value) -> Value:
        """Rotary embedding of each head of `x`, rotating column `i` with column `i + head_dim / 2`.

        The head dimension is `rotation.columns` (Su et al., 2021, in Hugging Face's half-split order).
        """
        if x.columns % rotation.columns:
            raise ValueError(f"{x.columns} columns do not divide into heads of {rotation.columns}")
        return self._record("rope", (x, rotation), x.columns)

    def attention(
        self, q: Value, k: Value, v: Value, *, layer: int, head_dim: int, scale: float, window: int = 0
    ) -> Value:
        """Causal attention over the sequence's cache, to which `k` and `v` are appended -> `[T, q.columns]`.

        Parameters
        ----------
        q : Value
            `[T, heads * head_dim]`, already rotated.
        k, v : Value
            `[T, kv_heads * head_dim]`; every `heads / kv_heads` query heads share one.
        layer : int
            Which layer's cache to use.
        scale : float
            Multiplies the scores, usually `head_dim ** -0.5`.
        window : int
            A token sees itself and the `window - 1` tokens before it; 0 means all.
        """
        if q.columns % k.columns or k.columns % head_dim or k.columns != v.columns:
            raise ValueError(f"heads do not fit: q {q.columns}, k {k.columns}, v {v.columns}, head_dim {head_dim}")
        return self._record(
            "attention", (q, k, v), q.columns, layer=layer, head_dim=head_dim, scale=scale, window=window
        )

    def gated(self, gate: Value, up: Value, activation: str) -> Value:
        """`activation(gate) * up`, with one of `ACTIVATIONS`."""
        if gate.columns != up.columns:
            raise ValueError(f"cannot gate {gate.columns} and {up.columns} columns")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        return self._record("gated", (gate, up), gate.columns, activation=activation)

    def select(self, x: Value) -> Value:
        """Keep only the rows whose logits are wanted -> `[wanted, columns]`."""
        return self._record("select", (x,), x.columns, selected=True)

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
        inputs: tuple[Value, ...],
        columns: int,
        tensors: tuple[str, ...] = (),
        *,
        selected: bool = False,
        **parameters: Any,
    ) -> Value:
        if len({value.selected for value in inputs}) > 1:
            raise ValueError(f"{name}: only some of the inputs are selected")
        selected = selected or any(value.selected for value in inputs)
        output = Value(len(self._operations), columns, selected)
        self._operations.append(Operation(name, inputs, output, tensors, MappingProxyType(parameters)))
        return output
