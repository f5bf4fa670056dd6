"""A step of a pass, and the memory of what it reads and writes, before either has an address.

`lowering.py` makes steps of a program's operations, `arena.py` gives their buffers memory, and `Plan.table` writes them
down as the compiled interpreter reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quantkit_kernels.interpreter.operations import OperationSpec, State


@dataclass(eq=False)
class Buffer:
    """Memory of one value.

    Attributes
    ----------
    row_bytes : int
        Bytes of a row; 0 for the KV cache, which lies elsewhere.
    per_token : int
        Rows for each token.
    slot : int
        Which slot of the arena holds it, -1 for none.
    local : int
        Where it lies in each thread's own memory, if it lives only inside of fused token steps: one row is enough.
    outside : int
        Which of the caller's rows hold it, those of the inputs of a program and then those of its outputs; -1: none.
    """

    row_bytes: int = 0
    per_token: int = 1
    slot: int = -1
    local: int = -1
    outside: int = -1

    @property
    def token_bytes(self) -> int:
        """Bytes for each token."""
        return self.row_bytes * self.per_token


@dataclass
class Step:
    """One step, before addresses are known.

    Attributes
    ----------
    spec : OperationSpec
        What it computes.
    output, inputs : Buffer
    wanted : bool
        Its tokens are those whose logits are wanted.
    per_token : int
        Rows that it writes for each token.
    weights : tuple of str
        Names of its tensors.
    constant : tuple of float
    fields : dict
        Fields of its `layout.STEP` that are known already.
    cache : int
        Index in `Plan.cache_layers`, for the steps that store or read keys and values.
    state_offset : int
        Where in a sequence's state its own begins, in bytes.
    barrier : bool
        All pieces of the steps before must be done.
    fused : int
        Steps from here on that a thread takes a token through, one after the other, before the next token.
    """

    spec: OperationSpec
    output: Buffer
    inputs: tuple[Buffer, ...]
    wanted: bool = False
    per_token: int = 1
    weights: tuple[str, ...] = ()
    constant: tuple[float, ...] = ()
    fields: dict[str, int | float] = field(default_factory=dict)
    cache: int = -1
    state_offset: int = 0
    barrier: bool = False
    fused: int = 1

    @property
    def state(self) -> State:
        """What it keeps of a sequence."""
        return self.spec.state(self.fields) if self.spec.state else State(0, 0)

    @property
    def scattered(self) -> tuple[Buffer, ...]:
        """Inputs of which it reads other rows than the one that it writes."""
        named = zip(self.spec.inputs, self.inputs, strict=True)
        return tuple(buffer for name, buffer in named if name in self.spec.scattered)

    @property
    def name(self) -> str:
        """Its weight, or else what it computes: for people."""
        return self.weights[0] if self.weights else self.spec.name
