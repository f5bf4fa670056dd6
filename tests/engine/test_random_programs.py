"""Random programs: whatever can be recorded runs, equal to the numpy truth, and to itself however the work is cut.

Programs are drawn from all operations, over odd sizes, with values that are read late or never, layers of different
shapes that share a cache, and ends that are no matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from numpy.typing import NDArray

import reference
import thread_meetings
import tiny
from memory_source import MemorySource
from quantkit.engine.lowering import plan
from quantkit.engine.model import Model
from quantkit.models.program import Cache, Program, Value
from quantkit.models.recorder import Recorder
from quantkit.quantization.encode import quantize
from quantkit.tensor import Tensor
from quantkit_kernels.interpreter.operations import ACTIVATIONS, OPERATIONS, SCORINGS

VOCAB = 11
COLUMNS = (1, 4, 6, 8, 12, 16, 40, 96)
HEADS = (1, 2, 3)
CONTEXT = 64
TOLERANCE = 1e-3
"""Of plain weights, of the largest of all values that the truth has. Errors are those of f32, but may grow in depth."""
HUGE = 1e12
"""Values that programs of squares upon squares may reach: from there on, f32 is not far from its end."""
PACKED_TOLERANCE = 0.2
"""Where an activation falls to the other side of a half, it moves by 1/127 of the largest in its group."""


class Author:
    """Records random operations."""

    def __init__(self, draw: DrawFn) -> None:
        self.draw, self.ops = draw, Recorder()
        self.values: list[Value] = []
        self.caches: list[Cache] = []
        self.rotations: list[Value] = []
        self.names = (f"{number}" for number in range(1000))
        self.write: dict[str, Callable[[], Value | Cache | None]] = {
            "embed": self.embed,
            "embed_positions": self.embed_positions,
            "scale": lambda: self.ops.scale(self.any(), self.draw(st.sampled_from([0.5, 1.5, -1.0]))),
            "scale_by_position": self.scale_by_position,
            "scale_columns": self.scale_columns,
            "add": lambda: self.pair(self.ops.add),
            "multiply": lambda: self.pair(self.ops.multiply),
            "clamp": lambda: self.ops.clamp(self.any(), self.draw(st.sampled_from([0.3, 5.0]))),
            "softcap": lambda: self.ops.softcap(self.any(), self.draw(st.sampled_from([0.3, 5.0]))),
            "slice": self.slice,
            "append": self.append,
            "rms_norm": lambda: self.norm(self.ops.rms_norm),
            "layer_norm": lambda: self.norm(self.ops.layer_norm, bias=self.draw(st.booleans())),
            "match_rms": lambda: self.pair(self.ops.match_rms),
            "sparsify": lambda: self.ops.sparsify(self.any(), self.draw(st.sampled_from([-0.3, 0.8]))),
            "gated": lambda: self.pair(lambda a, b: self.ops.gated(a, b, self.activation())),
            "gated_clamped": self.gated_clamped,
            "activate": lambda: self.ops.activate(self.any(), self.activation()),
            "xielu": lambda: self.ops.xielu(self.any(), next(self.names)),
            "rotation": self.rotation,
            "rope": self.rope,
            "store_kv": self.store_kv,
            "attention": self.attention,
            "linear": lambda: self.linear(self.draw(st.sampled_from(COLUMNS))),
            "scale_rows": self.scale_rows,
            "scale_by_weight": self.scale_by_weight,
            "experts": self.experts,
            "short_conv": self.short_conv,
            "ssd": self.ssd,
            "delta_rule": self.delta_rule,
            "selective_scan": self.selective_scan,
            "rg_lru": self.rg_lru,
        }

    def any(self, columns: int = 0) -> Value:
        """A value, of so many columns if there is need; the late ones are drawn more often."""
        fitting = [value for value in self.values if columns in (0, value.columns)]
        return self.draw(st.one_of(st.just(fitting[-1]), st.sampled_from(fitting)))

    def add(self, name: str) -> None:
        made = self.write[name]()
        if isinstance(made, Cache):
            self.caches.append(made)
        elif made is not None:
            self.values.append(made)

    def select(self) -> None:
        """Go on with the wanted rows of some values, and of the sum of some that are read late."""
        late = self.draw(st.lists(st.sampled_from(self.values), max_size=4, unique=True))
        for value in late:
            same = self.ops.linear(value, next(self.names), 8)
            self.values.append(self.ops.add(same, self.values[-1]) if self.values[-1].columns == 8 else same)
        chosen = self.draw(st.lists(st.sampled_from(self.values), min_size=1, max_size=3, unique=True))
        self.values = [self.ops.select(value) for value in chosen]

    def embed(self) -> Value:
        return self.ops.embed(next(self.names), VOCAB, self.draw(st.sampled_from(COLUMNS)))

    def embed_positions(self) -> Value:
        columns, offset = self.draw(st.sampled_from(COLUMNS)), self.draw(st.sampled_from([0, 2]))
        return self.ops.embed_positions(next(self.names), CONTEXT, columns, offset=offset)

    def scale_columns(self) -> Value:
        x = self.any()
        return self.ops.scale_columns(x, tuple(0.5 + number % 3 for number in range(x.columns)))

    def scale_by_position(self) -> Value:
        period, offset = self.draw(st.sampled_from([1, 3, 50])), self.draw(st.sampled_from([0, 1]))
        return self.ops.scale_by_position(self.any(), beta=0.5, period=period, offset=offset)

    def scale_by_weight(self) -> Value:
        x = self.any()
        return self.ops.scale_by_weight(x, next(self.names), self.draw(st.sampled_from([1, x.columns])))

    def slice(self) -> Value:
        x = self.any()
        begin = self.draw(st.integers(0, x.columns - 1))
        return self.ops.slice(x, begin, self.draw(st.integers(begin + 1, x.columns)))

    def append(self) -> Value:
        a, b = self.any(), self.draw(st.sampled_from(self.values))
        fitting = [n for n in range(1, a.columns + 1) if a.columns % n == 0 and n * b.columns <= 100]
        return self.ops.append(a, b, parts=self.draw(st.sampled_from(fitting))) if fitting else b

    def pair(self, record: Callable[[Value, Value], Value]) -> Value:
        a = self.any()
        return record(a, self.any(a.columns))

    def linear(self, rows: int) -> Value:
        return self.ops.linear(self.any(), next(self.names), rows, bias=self.draw(st.booleans()))

    def activation(self) -> str:
        return self.draw(st.sampled_from(ACTIVATIONS))

    def gated_clamped(self) -> Value:
        numbers = {name: self.draw(st.sampled_from([0.7, 2.0])) for name in ("limit", "alpha", "offset")}
        return self.pair(lambda gate, up: self.ops.gated_clamped(gate, up, **numbers))

    def norm(self, record: Callable[..., Value], bias: bool = False) -> Value:
        x = self.any()
        size = self.draw(st.sampled_from([n for n in range(1, x.columns + 1) if x.columns % n == 0]))
        if self.draw(st.booleans()):
            return record(x, None, 0.01, size=size)
        shape = self.draw(st.sampled_from([None, (size,), (x.columns,), (x.columns // size, size)]))
        affine = {"weight_shape": shape, "offset": self.draw(st.sampled_from([0.0, 1.0]))}
        return record(x, next(self.names), 0.01, size=size, **affine, **({"bias": True} if bias else {}))

    def rotation(self) -> Value:
        pairs = self.draw(st.sampled_from([1, 2, 4, 8, 9, 20]))
        frequencies = tuple(0.7**i for i in range(pairs))
        factor, offset = self.draw(st.sampled_from([1.0, 0.7])), self.draw(st.sampled_from([0, 2]))
        self.rotations.append(self.ops.rotation(frequencies, factor, offset=offset))
        return self.rotations[-1]

    def rope(self) -> Value:
        if not self.rotations or self.draw(st.booleans()):
            self.add("rotation")
        rotation = self.draw(st.sampled_from(self.rotations))
        begin = self.draw(st.sampled_from([0, 0, 1, 16]))
        head_dim = begin + rotation.columns + self.draw(st.sampled_from([0, 0, 1, 8, 13]))
        fitting = [value for value in self.values if value.columns % head_dim == 0 and value != rotation]
        if not fitting or self.draw(st.booleans()):
            fitting = [self.linear(head_dim * self.draw(st.sampled_from(HEADS)))]
            self.values += fitting
        return self.ops.rope(
            self.draw(st.sampled_from(fitting)),
            rotation,
            head_dim=head_dim,
            begin=begin,
            interleaved=self.draw(st.booleans()),
        )

    def store_kv(self) -> Cache:
        k = self.linear(self.draw(st.sampled_from(COLUMNS)))
        head_dim = self.draw(st.sampled_from([n for n in range(1, k.columns + 1) if k.columns % n == 0]))
        v_head_dim = self.draw(st.sampled_from([head_dim, 1, 5, 20]))
        columns = k.columns // head_dim * v_head_dim
        fitting = [value for value in (*self.values, k) if value.columns == columns]
        shared = self.draw(st.booleans()) and bool(fitting)
        v = self.draw(st.sampled_from(fitting)) if shared else self.linear(columns)
        return self.ops.store_kv(k, v, head_dim=head_dim, v_head_dim=v_head_dim)

    def attention(self) -> Value:
        if not self.caches:
            self.add("store_kv")
        cache = self.draw(st.sampled_from(self.caches))
        q = self.linear(cache.kv_heads * cache.head_dim * self.draw(st.sampled_from(HEADS)))
        bent: dict[str, Any] = self.draw(st.sampled_from([{}, {"softcap": 2.0}, {"slopes": (0.5, 0.01, 2.0)}]))
        if "slopes" in bent:
            heads = q.columns // cache.head_dim
            bent = {"slopes": tuple(np.resize(bent["slopes"], heads).tolist())}
        return self.ops.attention(
            q,
            cache,
            scale=self.draw(st.sampled_from([0.1, 1.0])),
            **bent,
            sinks=self.draw(st.sampled_from([None, next(self.names)])),
            window=self.draw(st.sampled_from([0, 1, 3, 100])),
            chunked=self.draw(st.booleans()),
        )

    def experts(self) -> Value:
        """A mixture of experts: some are never chosen, some by all tokens."""
        x, experts = self.any(), self.draw(st.sampled_from([1, 3, 4, 17]))
        scoring = self.draw(st.sampled_from(SCORINGS))
        plain = scoring == "softmax_of_close"
        groups = 2 if experts == 4 and self.draw(st.booleans()) and not plain else 1
        choice = self.ops.route(
            self.linear(experts),
            self.draw(st.integers(1, min(experts, 3))) if groups == 1 else 2,
            scoring=scoring,
            normalize=self.draw(st.booleans()),
            factor=self.draw(st.sampled_from([1.0, 2.5])),
            tolerance=self.draw(st.sampled_from([0.02, 1.0])) if plain else 0.0,
            bias=next(self.names) if self.draw(st.booleans()) and not plain else None,
            groups=groups,
            group_best=groups,
        )
        if self.draw(st.booleans()):
            choice = self.ops.scale_choice(choice, next(self.names))
        rows = self.ops.gather(x, choice)
        if self.draw(st.booleans()):
            rows = self.ops.scale(rows, 0.5)
        modules = [next(self.names) for _ in range(experts)]
        y = self.ops.expert_linear(
            rows, choice, modules, self.draw(st.sampled_from(COLUMNS)), bias=self.draw(st.booleans())
        )
        return self.ops.combine(self.ops.gated(y, y, "silu") if self.draw(st.booleans()) else y, choice)

    def scale_rows(self) -> Value:
        x = self.any()
        parts = self.draw(st.sampled_from([n for n in range(1, x.columns + 1) if x.columns % n == 0]))
        return self.ops.scale_rows(x, self.linear(parts))

    def rg_lru(self) -> Value:
        x = self.any()
        return self.ops.rg_lru(x, self.linear(x.columns), self.any(x.columns), next(self.names))

    def selective_scan(self) -> Value:
        x = self.any()
        size = self.draw(st.sampled_from([1, 3, 16]))
        return self.ops.selective_scan(x, self.linear(x.columns), self.linear(2 * size), next(self.names))

    def ssd(self) -> Value:
        groups, size = self.draw(st.sampled_from(HEADS)), self.draw(st.sampled_from([1, 3, 16]))
        heads, head_dim = groups * self.draw(st.sampled_from([1, 2])), self.draw(st.sampled_from([1, 5, 16, 40]))
        limits = self.draw(st.sampled_from([(0.0, math.inf), (0.1, 0.8)]))
        x = self.linear(heads * head_dim + 2 * groups * size)
        return self.ops.ssd(x, self.linear(heads), next(self.names), head_dim=head_dim, groups=groups, limits=limits)

    def delta_rule(self) -> Value:
        key_heads, sharing, key_dim, value_dim = (self.draw(st.integers(1, most)) for most in (2, 3, 20, 40))
        heads = key_heads * sharing
        return self.ops.delta_rule(
            self.linear(2 * key_heads * key_dim + heads * value_dim),
            self.linear(heads),
            self.linear(heads),
            next(self.names),
            key_heads=key_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            factor=self.draw(st.sampled_from([1.0, 2.0])),
        )

    def short_conv(self) -> Value:
        x = self.any()
        begin = self.draw(st.integers(0, x.columns - 1))
        return self.ops.short_conv(
            x,
            next(self.names),
            self.draw(st.integers(2, 8)),
            columns=self.draw(st.sampled_from([None, (begin, x.columns), (0, begin + 1)])),
            bias=self.draw(st.booleans()),
            activation=self.activation(),
        )


MADE_BY_OTHERS = {
    *("select", "quantize", "route", "assign", "gather", "expert_linear", "combine", "scale_choice"),
    *("block_maxima", "choose"),
}
"""Operations that the author records as a part of something else, or that lowering puts in."""
ANY_ROWS = {
    *("scale", "scale_columns", "scale_by_weight", "add", "multiply", "clamp", "softcap", "slice", "append"),
    *("rms_norm", "layer_norm", "match_rms", "sparsify", "gated", "gated_clamped", "activate", "xielu", "linear"),
}
"""Operations that take selected rows."""


@st.composite
def programs(draw: DrawFn) -> Program:
    author = Author(draw)
    author.add("embed")
    for name in draw(st.lists(st.sampled_from(sorted(author.write)), max_size=12)):
        author.add(name)
    author.select()
    for name in draw(st.lists(st.sampled_from(sorted(ANY_ROWS)), max_size=5)):
        author.add(name)
    return author.ops.program()


@st.composite
def cases(draw: DrawFn) -> tuple[Program, MemorySource, bool]:
    """A program, random tensors for it, and whether any is packed."""
    program = draw(programs())
    packed = draw(st.booleans())
    kinds = ("int4", "int5", "int6", "int8", "f32") if packed else ("f32", "f16", "bf16")
    experts = draw(st.sampled_from(kinds))
    tensors = {}
    for name, spec in program.tensors.items():
        tensor = Tensor("f32", spec.shape, tiny.weight(name, spec.shape))
        kind = "f32" if spec.is_vector else experts if spec.role == "expert" else draw(st.sampled_from(kinds))
        tensors[name] = quantize(tensor, kind)[0]
    return program, MemorySource(tensors), packed


@settings(max_examples=1)
@given(author=st.composite(Author)())
def test_the_author_knows_every_operation(author: Author) -> None:
    assert set(OPERATIONS) == {*author.write, *MADE_BY_OTHERS} - {"experts"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(case=cases(), tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), threads=st.integers(1, 3))
def test_engine_equals_the_truth_in_one_pass_and_token_by_token(
    case: tuple[Program, MemorySource, bool], tokens: list[int], threads: int
) -> None:
    program, source, packed = case
    truth = truth_of(program, source, tokens)
    assume(largest(truth) < HUGE)
    compare(program, source, tokens, threads, truth, PACKED_TOLERANCE if packed else TOLERANCE)


def test_what_is_turned_is_not_written_over_what_turns_it() -> None:
    ops = Recorder()
    h, rotation = ops.embed("embed", VOCAB, 8), ops.rotation((1.0, 0.5))
    x = ops.linear(h, "x", 16)
    turned = ops.linear(ops.rope(x, rotation), "turned", 16)  # `x` lives on, the rotation does not
    ops.linear(ops.select(ops.add(turned, x)), "head", 7)
    program = ops.program()
    tensors = {name: Tensor("f32", spec.shape, tiny.weight(name, spec.shape)) for name, spec in program.tensors.items()}
    source, tokens = MemorySource(tensors), [1, 2, 3, 4, 5]
    compare(program, source, tokens, 2, truth_of(program, source, tokens), TOLERANCE)


Truth = Mapping[int, NDArray[np.float64]]
"""All values of a program, by their index."""


def truth_of(program: Program, source: MemorySource, tokens: list[int]) -> Truth:
    with np.errstate(over="ignore", invalid="ignore"):
        return reference.values(program, source, tokens, quantize_activations=True)


def largest(truth: Truth) -> float:
    return max(1.0, *(float(np.abs(value).max()) for value in truth.values()))


def compare(
    program: Program, source: MemorySource, tokens: list[int], threads: int, truth: Truth, tolerance: float
) -> None:
    """Assert that a program runs as the truth has it, to the same bits however it is cut into passes."""
    thread_meetings.check(plan(program, {name: tensor.kind for name, tensor in source.tensors.items()}))
    model = Model(program, source, context_length=CONTEXT, threads=threads, kv_kind="f32")
    try:
        logits = model(tokens)
        assert np.abs(logits - truth[program.logits.index]).max() <= tolerance * largest(truth)
        with model.new_sequence() as sequence:
            steps = [model.forward([(sequence, [token])]) for token in tokens]
        assert np.concatenate(steps).tobytes() == logits.tobytes()
        with model.new_sequence() as sequence:
            pieces = model.forward([(sequence, tokens)], every=True, chunk=7)
        assert pieces.tobytes() == logits.tobytes()
        check_company(model, tokens, logits)
    finally:
        model.close()


def check_company(model: Model, tokens: list[int], logits: NDArray[np.float32]) -> None:
    """Assert the same bits with other sequences in the batch, and when tokens were taken back."""
    half = len(tokens) // 2
    with model.new_sequence() as sequence, model.new_sequence() as other:
        model.forward([(other, [1, 2, 3]), (sequence, [*tokens[:half], 4])])
        sequence.truncate(half)
        sequence.keep_state(half + 1)
        batch = [(other, [5, 6]), (sequence, [tokens[half], 7, 8])]
        rows = model.forward(batch, every=True, chunk=4)
        assert rows[2].tobytes() == logits[half].tobytes()
        sequence.truncate(half + 1)
        if half + 1 < len(tokens):
            rows = model.forward([(sequence, tokens[half + 1 :]), (other, [9])], every=True)
            assert rows[:-1].tobytes() == logits[half + 1 :].tobytes()
