"""Arithmetic of vectors: operators, named operations, reductions over lanes in a fixed order, choices by lane."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic

from .registers import (
    F32,
    I32,
    I64,
    WIDE,
    call_llvm,
    constant,
    first_lanes,
    grid_place,
    halves,
    load_at,
    splat_scalar,
    store_at,
)
from .vectors import Vec, broadcast, elementwise, join, map_grid, split

_FLOAT = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
_INTEGER = {operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.and_: "and_"}


def _register_operator(op: Any) -> None:
    """Give numba `op` on two vectors of the same elements."""

    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, keywords):
            if len(args) == 2 and all(isinstance(arg, Vec) for arg in args) and args[0].element == args[1].element:
                return signature(broadcast(args[0].element, args), *args)
            return None

    @lower_builtin(op, Vec, Vec)
    def lower(context, builder, sig, args):
        name = (_FLOAT if sig.return_type.element == "f32" else _INTEGER)[op]
        return map_grid(builder, sig.return_type, sig.args, args, lambda b, x, y: getattr(b, name)(x, y))


for _op in _FLOAT | _INTEGER:
    _register_operator(_op)


def _named(name: str) -> Callable[..., Any]:
    """An LLVM intrinsic on f32 registers of any length."""
    return lambda builder, *registers: call_llvm(
        builder, f"{name}.v{registers[0].type.count}f32", registers[0].type, *registers
    )


fma = elementwise(3, "f32", _named("llvm.fma"))
"""`a * b + c`, rounded once."""


@intrinsic
def fma_outer(typing, a, address, stride, c):
    """`a * b + c` of a column `a`, where token j of `b` is one f32 in every lane, from `address + j * stride`.

    As `fma` with `broadcast_f32`, but token after token, so that only one of the broadcasts occupies a register.
    """

    def generate(context, builder, sig, args):
        column, grid = split(builder, a, args[0]), split(builder, c, args[3])
        for token in range(c.tokens):
            scalar = load_at(builder, F32, args[1], builder.mul(args[2], I64(token)))
            b = splat_scalar(builder, c.register, scalar)
            for row in range(c.rows):
                place = row * c.tokens + token
                grid[place] = _named("llvm.fma")(builder, column[row], b, grid[place])
        return join(builder, c, grid)

    return c(a, types.int64, types.int64, c), generate


minimum = elementwise(2, "f32", _named("llvm.minnum"))
maximum = elementwise(2, "f32", _named("llvm.maxnum"))
absolute = elementwise(1, "f32", _named("llvm.fabs"))
round_up = elementwise(1, "f32", _named("llvm.ceil"))
round_even = elementwise(1, "f32", _named("llvm.rint"))
square_root = elementwise(1, "f32", _named("llvm.sqrt"))
copysign = elementwise(2, "f32", _named("llvm.copysign"))
to_f32 = elementwise(1, "f32", lambda b, x: b.sitofp(x, ir.VectorType(F32, x.type.count)))
to_i32 = elementwise(1, "i32", lambda b, x: b.fptosi(x, ir.VectorType(I32, x.type.count)))
power_of_two = elementwise(
    1,
    "f32",
    lambda b, n: b.bitcast(
        b.shl(b.add(n, constant(n.type, 127)), constant(n.type, 23)), ir.VectorType(F32, n.type.count)
    ),
)
"""2**n for i32 n in -126..127, made from its bits."""


def _add_to_exponent(builder: Any, x: Any, n: Any) -> Any:
    bits = builder.add(builder.bitcast(x, n.type), builder.shl(n, constant(n.type, 23)))
    return builder.bitcast(bits, x.type)


add_to_exponent = elementwise(2, "f32", _add_to_exponent)
"""`x * 2**n` for f32 x and i32 n, where both x and the result are normal numbers."""


def _fold(builder: Any, register: Any, build: Callable[[Any, Any, Any], Any]) -> Any:
    """Fold the lanes of a register: halves, quarters, eighths; always in this order."""
    while register.type.count > 1:
        register = build(builder, *halves(builder, register))
    return builder.extract_element(register, I32(0))


def _add(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y)


def _max(builder: Any, x: Any, y: Any) -> Any:
    # One instruction. `maxnum` would take three, because it ignores NaN; here the result may be NaN if a lane is.
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _reduction(build: Callable[[Any, Any, Any], Any]) -> Any:
    def reduce(typing, x):
        return types.float32(x), lambda context, builder, sig, args: _fold(builder, args[0], build)

    return intrinsic(reduce)


sum_lanes = _reduction(_add)
max_lanes = _reduction(_max)


def clamp_registers(builder: Any, x: Any, low: Any, high: Any) -> Any:
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    return builder.select(builder.fcmp_ordered(">", x, high), high, x)


larger = elementwise(2, "f32", _max)
"""`a` where `a > b`, else `b`: one instruction. `maximum` takes three, because it ignores NaN."""
clamp = elementwise(3, "f32", clamp_registers)
"""`clamp(x, low, high)`; NaN stays NaN."""


def _row_reduction(build: Callable[[Any, Any, Any], Any]) -> Any:
    """Make a function that folds the lanes of each of `WIDE` rows, `WIDE` lanes of f32 at `address + i * 4 * WIDE`.

    Lane i of the result is row i folded in the order of `_fold`. Two rows become one register at each step, so it takes
    a third of the instructions of as many reductions.
    """

    def reduce(typing, address):
        vec = Vec("f32", lanes=WIDE)

        def generate(context, builder, sig, args):
            registers = [load_at(builder, vec.register, args[0], 4 * WIDE * row) for row in range(WIDE)]
            length = WIDE
            while length > 1:
                pairs = zip(registers[::2], registers[1::2], strict=True)
                registers = [_folded_pair(builder, *pair, length, build) for pair in pairs]
                length //= 2
            return registers[0]

        return vec(types.int64), generate

    return intrinsic(reduce)


def _folded_pair(builder: Any, a: Any, b: Any, length: int, build: Callable[[Any, Any, Any], Any]) -> Any:
    """Fold groups of `length` lanes of two registers once: the groups of `a`, half as long, before those of `b`."""
    lanes, starts = ir.VectorType(I32, a.type.count), range(0, 2 * a.type.count, length)
    places = ([start + half + i for start in starts for i in range(length // 2)] for half in (0, length // 2))
    return build(builder, *(builder.shuffle_vector(a, b, ir.Constant(lanes, each)) for each in places))


max_rows, sum_rows = _row_reduction(_max), _row_reduction(_add)


@intrinsic
def sum_lanes_i32(typing, x):
    """Sum of the lanes of one i32 register."""

    def generate(context, builder, sig, args):
        return call_llvm(builder, f"llvm.vector.reduce.add.v{x.lanes}i32", I32, args[0])

    return types.int32(x), generate


@intrinsic
def store_sums(typing, address, row_stride, token_stride, value):
    """Store the sum of lanes (as `sum_lanes`) of row i and token j, one f32, at `address + i * ... + j * ...`."""

    def generate(context, builder, sig, args):
        registers = iter(split(builder, value, args[3]))
        for row in range(value.rows):
            for token in range(value.tokens):
                total = _fold(builder, next(registers), _add)
                store_at(builder, total, args[0], grid_place(builder, args[1], args[2], row, token, value.tokens))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, value), generate


@intrinsic
def where_less(typing, a, b, yes, no):
    """`yes` where `a < b`, else `no`, lane by lane; all are f32. NaN is not less."""

    def choose(builder, a, b, yes, no):
        return builder.select(builder.fcmp_ordered("<", a, b), yes, no)

    def generate(context, builder, sig, args):
        return map_grid(builder, sig.return_type, sig.args, args, choose)

    return broadcast("f32", (a, b, yes, no))(a, b, yes, no), generate


@intrinsic
def blend_first(typing, count, a, b):
    """Lanes below `count` from `a`, the others from `b`."""

    def generate(context, builder, sig, args):
        mask = first_lanes(builder, args[0], a.lanes)
        return map_grid(builder, sig.return_type, (a, b), args[1:], lambda bld, x, y: bld.select(mask, x, y))

    return broadcast(a.element, (a, b))(types.int64, a, b), generate


@intrinsic
def lane_numbers(typing, like):
    """0, 1, 2, ... in the lanes of one f32 register that is as wide as those of `like`."""
    vec = Vec("f32", lanes=like.lanes)

    def generate(context, builder, sig, args):
        return ir.Constant(vec.register, [float(lane) for lane in range(vec.lanes)])

    return vec(like), generate


@intrinsic
def hadamard_lanes(typing, x):
    """The Walsh-Hadamard transform of the lanes of one f32 register, not scaled: lanes 1 apart, then 2, 4, 8."""

    def generate(context, builder, sig, args):
        register, kind = args[0], args[0].type
        stride = 1
        while stride < x.lanes:
            partners = ir.Constant(ir.VectorType(I32, x.lanes), [lane ^ stride for lane in range(x.lanes)])
            signs = ir.Constant(kind, [-1.0 if lane & stride else 1.0 for lane in range(x.lanes)])
            swapped = builder.shuffle_vector(register, register, partners)
            register = _named("llvm.fma")(builder, register, signs, swapped)
            stride *= 2
        return register

    return x(x), generate


def _every_other(first: int) -> Any:
    """Lanes `first`, `first + 2`, ... of a register, as a register of half its lanes."""

    def take(typing, x):
        def generate(context, builder, sig, args):
            numbers = ir.Constant(ir.VectorType(I32, x.lanes // 2), list(range(first, x.lanes, 2)))
            return builder.shuffle_vector(args[0], args[0], numbers)

        return Vec(x.element, lanes=x.lanes // 2)(x), generate

    return intrinsic(take)


even_lanes, odd_lanes = _every_other(0), _every_other(1)


@intrinsic
def interleave(typing, even, odd):
    """A register of twice the lanes, by turns from `even` and from `odd`."""

    def generate(context, builder, sig, args):
        numbers = [
            lane for pair in zip(range(even.lanes), range(even.lanes, 2 * even.lanes), strict=True) for lane in pair
        ]
        return builder.shuffle_vector(*args, ir.Constant(ir.VectorType(I32, 2 * even.lanes), numbers))

    return Vec(even.element, lanes=2 * even.lanes)(even, odd), generate
