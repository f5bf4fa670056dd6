"""The table of operations: everything that is to be said of one stands in its row.

`quantkit.models.recorder` checks what is recorded against it, `quantkit.engine.lowering` makes steps of it,
`kernels.py` has the kernel of each, `quantkit.evaluation.roofline` counts its work, and the tests compare
kernels with its numpy truth (`truth/`). To add an operation is to add a row, a kernel, and a method of the recorder.
numpy alone, no numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit_kernels.interpreter import truth

ACTIVATIONS = tuple(truth.ACTIVATIONS)
"""Names of activation functions; a step holds the place of one."""
SCORINGS = tuple(truth.SCORINGS)
"""Names of what makes scores of a router's logits; a step holds the place of one."""


MOST_EXPERTS = 1024
"""Experts of a layer at most."""
STATE_ROWS = 32
"""Rows of a head's state in a unit of Mamba-2."""
LINE = 16
"""Numbers of a cache line, f32: channels of a unit of a short convolution and of Mamba."""
BLOCK, STRIP = 8, 32
"""Tokens after which a delta rule brings its matrices up to date, and columns of a matrix that lie together."""
MOST_STATES = 256
"""Numbers that a channel of Mamba keeps at most."""


class Chunk(NamedTuple):
    """`count` new tokens of one sequence that holds `depth` already."""

    count: int
    depth: int


class Load(NamedTuple):
    """What a step has to do in a pass: its tokens, and the chunks that they come in."""

    tokens: int
    chunks: Sequence[Chunk]
    per_token: int
    """Rows that a token has: more than one where they go to experts."""
    weight_bytes: int
    """Bytes of its weight, or of those of all experts."""
    weight_rows: int
    """Rows of its weight, 1 if it has none."""
    position_bytes: float
    """Bytes of one position of its layer in the KV cache."""
    state_bytes: int
    """Bytes of its state of one sequence."""


class State(NamedTuple):
    """What an operation keeps of a sequence: `units` slices that need no other, each of `floats` f32, one behind the
    other. Threads share them; slices of whole cache lines, 16 numbers, keep them from sharing lines."""

    units: int
    floats: int

    @property
    def nbytes(self) -> int:
        """Bytes of all slices."""
        return 4 * self.units * self.floats


@dataclass(frozen=True)
class Cost:
    """Work of a step, a pass or a test.

    Attributes
    ----------
    weight_bytes, cache_bytes : float
        Bytes read of weights, and of what is kept of sequences: keys, values and states.
    macs : float
        Multiply-adds of matrix products and attention.
    """

    weight_bytes: float = 0
    cache_bytes: float = 0
    macs: float = 0

    @property
    def nbytes(self) -> float:
        """All bytes read."""
        return self.weight_bytes + self.cache_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weight_bytes + other.weight_bytes, self.cache_bytes + other.cache_bytes, self.macs + other.macs
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.weight_bytes * times, self.cache_bytes * times, self.macs * times)


def _weight_once(fields: Mapping[str, Any], load: Load) -> Cost:
    return Cost(load.weight_bytes if load.tokens else 0)


def _state_once(fields: Mapping[str, Any], load: Load) -> Cost:
    """Weight and state, whose products are few beside those of matrices."""
    return Cost(load.weight_bytes if load.tokens else 0, load.state_bytes * len(load.chunks))


def _delta_rule(fields: Mapping[str, Any], load: Load) -> Cost:
    """A token's key and query meet a head's matrix, and its delta is added to it."""
    macs = 3 * fields["value_heads"] * fields["key_dim"] * fields["value_dim"] * load.tokens
    return _state_once(fields, load) + Cost(macs=macs)


def _delta_rule_state(fields: Mapping[str, Any]) -> State:
    """For each head: a line of decays, the keys and the deltas of a block, and the matrix."""
    keys, deltas = -(-fields["key_dim"] // LINE) * LINE, -(-fields["value_dim"] // STRIP) * STRIP
    return State(fields["value_heads"], LINE + BLOCK * (keys + deltas) + fields["key_dim"] * deltas)


def _weight_rows(fields: Mapping[str, Any], load: Load) -> Cost:
    return Cost(load.weight_bytes / load.weight_rows * load.tokens)


def _product(fields: Mapping[str, Any], load: Load) -> Cost:
    macs = fields["in_columns"] * fields["out_columns"] * load.tokens
    return Cost(load.weight_bytes if load.tokens else 0, macs=macs)


def _attention(fields: Mapping[str, Any], load: Load) -> Cost:
    """Keys and values that any token sees are read once; each token meets those that it sees."""
    window = fields["window"] or sum(chunk.depth + chunk.count for chunk in load.chunks)
    if fields["chunked"]:
        read = sum(chunk.depth % window + chunk.count for chunk in load.chunks)
        seen = sum((chunk.depth + place) % window + 1 for chunk in load.chunks for place in range(chunk.count))
    else:
        read = sum(min(chunk.depth + chunk.count, window + chunk.count - 1) for chunk in load.chunks)
        seen = sum(_positions_seen(chunk, window) for chunk in load.chunks)
    heads = fields["kv_heads"] * fields["heads_per_kv"]
    return Cost(
        load.weight_bytes, read * load.position_bytes, seen * heads * (fields["head_dim"] + fields["v_head_dim"])
    )


def _positions_seen(chunk: Chunk, window: int) -> int:
    """Positions that the tokens of a chunk see, all together: a token at `p` sees `min(p + 1, window)`."""
    first, last = chunk.depth + 1, chunk.depth + chunk.count
    whole = min(max(window, first - 1), last)  # tokens up to here see everything before them
    return (first + whole) * (whole - first + 1) // 2 + (last - whole) * window


def _experts(fields: Mapping[str, Any], load: Load) -> Cost:
    """The experts that some token chose are read once: as many as are chosen on average, if all are alike."""
    experts, top_k = fields["experts"], load.per_token
    read = experts * (1 - (1 - top_k / experts) ** load.tokens)
    macs = fields["in_columns"] * fields["out_columns"] * load.tokens * top_k
    return Cost(load.weight_bytes * read / experts, macs=macs)


@dataclass(frozen=True)
class OperationSpec:
    """One operation.

    Attributes
    ----------
    truth : callable
        What it computes; called with what it reads of the batch, its inputs, state, weights, constant, and its
        parameters by name.
    batch : tuple of str
        What it reads of the batch itself: `ids`, `positions`, `wanted`.
    inputs : tuple of str
        Names of its inputs, f32 rows; `cache` is a layer's keys and values.
    weights : tuple of str
        Names of the tensors that it reads, each a field of `layout.STEP`; the last ones may be missing.
    product : bool
        It is a matrix product: packed weights take int8 activations.
    stacked : bool
        It reads one weight, and perhaps one bias, of each expert.
    constant : bool
        It reads f32 numbers that were recorded with it, if any were.
    parameters : tuple of str
        Numbers, or the name of an activation, that were recorded with it. Each is a field of `layout.STEP`.
    in_place : tuple of str
        Inputs whose row the output may take.
    scattered : tuple of str
        Inputs of which it reads other rows than the one that it writes.
    state : callable, optional
        What it keeps of a sequence, from the fields of a step. Its kernel is called by `recurrent.py`, and walks the
        tokens of a chunk in order, in one fixed order of arithmetic.
    shared : bool
        Its pieces are no rows but row tiles, parts of attention or units of a state: any may touch any row.
    work : callable
        Bytes and multiply-adds, from the fields of a step and its load.
    """

    truth: Callable[..., Any]
    batch: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    product: bool = False
    stacked: bool = False
    constant: bool = False
    parameters: tuple[str, ...] = ()
    in_place: tuple[str, ...] = ()
    scattered: tuple[str, ...] = ()
    state: Callable[[Mapping[str, Any]], State] | None = None
    shared: bool = False
    work: Callable[[Mapping[str, Any], Load], Cost] = _weight_once

    @property
    def name(self) -> str:
        """Key of `OPERATIONS`."""
        return self.truth.__name__

    @property
    def looks_up(self) -> bool:
        """Whether its weight is a table, of which a token reads one row."""
        return self.work is _weight_rows


def _ssd(fields: Mapping[str, Any], load: Load) -> Cost:
    """A token's outer product is added to the matrix of a head, which its `C` then meets."""
    macs = 2 * fields["heads"] * fields["head_dim"] * fields["state_size"] * load.tokens
    return _state_once(fields, load) + Cost(macs=macs)


def _ssd_state(fields: Mapping[str, Any]) -> State:
    """Units are rows of one head; the last ones of a head may be fewer."""
    units = fields["heads"] * -(-fields["head_dim"] // STATE_ROWS)
    return State(units, STATE_ROWS * fields["state_size"])


_CHOICE = ("experts", "top_k")
_ROUTING = (*_CHOICE, "scoring", "groups", "chosen_groups", "group_best", "normalize", "factor", "tolerance")
_NORM = ("size", "weight_columns", "eps", "offset")

_ROWS = (
    OperationSpec(truth.embed, ("ids",), weights=("weight",), work=_weight_rows),
    OperationSpec(
        truth.embed_positions, ("positions",), weights=("weight",), parameters=("position_offset",), work=_weight_rows
    ),
    OperationSpec(truth.scale, inputs=("x",), parameters=("factor",), in_place=("x",)),
    OperationSpec(
        truth.scale_by_position,
        ("positions",),
        inputs=("x",),
        parameters=("beta", "period", "position_offset"),
        in_place=("x",),
    ),
    OperationSpec(truth.scale_columns, inputs=("x",), constant=True, in_place=("x",)),
    OperationSpec(truth.add, inputs=("a", "b"), in_place=("a", "b")),
    OperationSpec(truth.multiply, inputs=("a", "b"), in_place=("a", "b")),
    OperationSpec(truth.clamp, inputs=("x",), parameters=("limit",), in_place=("x",)),
    OperationSpec(truth.softcap, inputs=("x",), parameters=("limit",), in_place=("x",)),
    OperationSpec(truth.slice, inputs=("x",), parameters=("begin", "end")),
    OperationSpec(truth.append, inputs=("a", "b"), parameters=("parts", "size")),
    OperationSpec(truth.rms_norm, inputs=("x",), weights=("weight",), parameters=_NORM, in_place=("x",)),
    OperationSpec(truth.layer_norm, inputs=("x",), weights=("weight", "bias"), parameters=_NORM, in_place=("x",)),
    OperationSpec(truth.match_rms, inputs=("x", "target"), in_place=("x",)),
    OperationSpec(truth.sparsify, inputs=("x",), parameters=("factor",), in_place=("x",)),
    OperationSpec(truth.gated, inputs=("gate", "up"), parameters=("activation",), in_place=("gate", "up")),
    OperationSpec(
        truth.gated_clamped, inputs=("gate", "up"), parameters=("alpha", "limit", "offset"), in_place=("gate", "up")
    ),
    OperationSpec(truth.activate, inputs=("x",), parameters=("activation",), in_place=("x",)),
    OperationSpec(
        truth.xielu, inputs=("x",), weights=("alpha_p", "alpha_n", "xielu_beta", "xielu_eps"), in_place=("x",)
    ),
    OperationSpec(truth.rotation, ("positions",), constant=True, parameters=("factor", "position_offset")),
    OperationSpec(
        truth.rope,
        inputs=("x", "rotation"),
        parameters=("head_dim", "begin", "rotary_dim", "interleaved"),
        in_place=("x",),
    ),
    OperationSpec(truth.store_kv, inputs=("k", "v"), parameters=("kv_heads", "head_dim", "v_head_dim")),
    OperationSpec(
        truth.attention,
        inputs=("q", "cache"),
        weights=("sinks",),
        constant=True,
        parameters=("kv_heads", "heads_per_kv", "head_dim", "v_head_dim", "scale", "softcap", "window", "chunked"),
        shared=True,
        work=_attention,
    ),
    OperationSpec(truth.select, ("wanted",), inputs=("x",), scattered=("x",)),
    OperationSpec(truth.quantize, inputs=("x",)),
    OperationSpec(truth.linear, inputs=("x",), weights=("weight", "bias"), product=True, shared=True, work=_product),
    OperationSpec(truth.block_maxima, inputs=("logits",), shared=True),
    OperationSpec(truth.choose, inputs=("logits", "maxima"), shared=True),
    OperationSpec(truth.route, inputs=("logits",), weights=("bias",), parameters=_ROUTING),
    OperationSpec(truth.assign, inputs=("routing",), parameters=_CHOICE, shared=True),
    OperationSpec(truth.gather, inputs=("x", "assigned"), parameters=_CHOICE, scattered=("x", "assigned")),
    OperationSpec(
        truth.expert_linear,
        inputs=("x", "assigned"),
        weights=("weight",),
        product=True,
        stacked=True,
        parameters=("experts",),
        shared=True,
        work=_experts,
    ),
    OperationSpec(truth.combine, inputs=("y", "assigned", "routing"), parameters=_CHOICE, scattered=("y", "assigned")),
    OperationSpec(truth.scale_rows, inputs=("x", "factors"), parameters=("size",), in_place=("x",)),
    OperationSpec(
        truth.scale_by_weight, inputs=("x",), weights=("weight",), parameters=("weight_columns",), in_place=("x",)
    ),
    OperationSpec(
        truth.scale_choice, inputs=("routing",), weights=("weight",), parameters=("top_k",), in_place=("routing",)
    ),
    OperationSpec(
        truth.short_conv,
        inputs=("x",),
        weights=("weight", "bias"),
        parameters=("begin", "end", "taps", "activation"),
        state=lambda fields: State(-(-fields["out_columns"] // LINE), (fields["taps"] - 1) * LINE),
        shared=True,
        work=_state_once,
    ),
    OperationSpec(
        truth.ssd,
        inputs=("x", "dt"),
        weights=("a_log", "dt_bias", "skip"),
        parameters=("heads", "head_dim", "groups", "state_size", "dt_min", "dt_max"),
        state=_ssd_state,
        shared=True,
        work=_ssd,
    ),
    OperationSpec(
        truth.delta_rule,
        inputs=("x", "a", "b"),
        weights=("a_log", "dt_bias"),
        parameters=("key_heads", "value_heads", "key_dim", "value_dim", "factor"),
        state=_delta_rule_state,
        shared=True,
        work=_delta_rule,
    ),
    OperationSpec(
        truth.selective_scan,
        inputs=("x", "dt", "bc"),
        weights=("a_log", "skip"),
        parameters=("state_size",),
        state=lambda fields: State(-(-fields["out_columns"] // LINE), fields["state_size"] * LINE),
        shared=True,
        work=_state_once,
    ),
    OperationSpec(
        truth.rg_lru,
        inputs=("x", "input_gate", "recurrent_gate"),
        weights=("weight",),
        state=lambda fields: State(-(-fields["out_columns"] // LINE), 2 * LINE),
        shared=True,
        work=_state_once,
    ),
)

OPERATIONS: Mapping[str, OperationSpec] = MappingProxyType({row.name: row for row in _ROWS})
"""All operations by name. Three are never recorded: lowering puts `quantize` before products of packed weights, and
`block_maxima` and `choose` behind the logits."""
