"""SIMD vector types for numba: the only file that knows LLVM and the instruction set.

A `Vec` is a small grid of registers, `rows x tokens`, that lives in CPU registers as a numba value. Operations
broadcast over the grid as numpy does over arrays: `fma(w, x, acc)` with `w` of 2 x 1, `x` of 1 x 4 and `acc` of 2 x 4
registers is eight instructions. So a micro-kernel is written once, and the type of its accumulator says how it is
blocked.

The functions below take `like`, a vector whose grid the result follows; addresses are int64. Dot products of packed
codes are the seam between instruction sets (`_Dot`): every set computes the same integers, hence the same bits. Kernels
are in `matmul.py`, `attention.py`, ...; the decorator that compiles them is in `jit.py`.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
ELEMENTS = {"i8": I8, "i16": I16, "i32": I32, "f32": F32}
PER_LANE = {"i8": 4, "i16": 2, "i32": 1, "f32": 1}
"""Elements in the 32 bits of a lane."""
LANES = 8
"""32-bit lanes of a register, one for each row of a block; 2 * LANES where a register holds two row tiles side by
side."""


class Vec(types.Type):
    """`rows x tokens` registers of `lanes` lanes of 32 bits, which hold one or more elements each."""

    def __init__(self, element: str, rows: int = 1, tokens: int = 1, lanes: int = LANES) -> None:
        self.element, self.rows, self.tokens, self.lanes = element, rows, tokens, lanes
        self.register = ir.VectorType(ELEMENTS[element], lanes * PER_LANE[element])
        super().__init__(name=f"{element}x{lanes}[{rows},{tokens}]")

    @property
    def count(self) -> int:
        """Number of registers."""
        return self.rows * self.tokens

    def of(self, element: str, rows: int | None = None, tokens: int | None = None) -> Vec:
        """Registers of the same lanes with other elements or another grid."""
        return Vec(element, self.rows if rows is None else rows, self.tokens if tokens is None else tokens, self.lanes)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vec.register if vec.count == 1 else ir.ArrayType(vec.register, vec.count))


ONE_F32, ONE_I32, ONE_BYTES = Vec("f32"), Vec("i32"), Vec("i8")
"""Types of single registers."""


# --- code generation ----------------------------------------------------------------------------------------------


def _split(builder: Any, vec: Vec, value: Any) -> list[Any]:
    return [value] if vec.count == 1 else [builder.extract_value(value, i) for i in range(vec.count)]


def _join(builder: Any, vec: Vec, registers: list[Any]) -> Any:
    if vec.count == 1:
        return registers[0]
    value = ir.Constant(ir.ArrayType(vec.register, vec.count), ir.Undefined)
    for i, register in enumerate(registers):
        value = builder.insert_value(value, register, i)
    return value


def _map(builder: Any, result: Vec, vecs: tuple[Vec, ...], values: tuple[Any, ...], build: Callable[..., Any]) -> Any:
    """Apply `build(builder, *registers)` at every place of the result's grid; a single row or token is reused."""
    operands = [_split(builder, vec, value) for vec, value in zip(vecs, values, strict=True)]
    registers = []
    for row in range(result.rows):
        for token in range(result.tokens):
            places = [(row if v.rows > 1 else 0) * v.tokens + (token if v.tokens > 1 else 0) for v in vecs]
            registers.append(build(builder, *(parts[i] for parts, i in zip(operands, places, strict=True))))
    return _join(builder, result, registers)


def _broadcast(element: str, vecs: tuple[Vec, ...]) -> Vec:
    return vecs[0].of(element, max(v.rows for v in vecs), max(v.tokens for v in vecs))


def _elementwise(arity: int, result: str, build: Callable[..., Any]) -> Any:
    """Make an intrinsic of `arity` vectors whose registers are `build(builder, *registers)`, of elements `result`."""

    def typed(*vecs: Vec) -> tuple[Any, Any]:
        vec = _broadcast(result, vecs)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _map(builder, vec, vecs, args, build)

        return vec(*vecs), generate

    if arity == 1:
        return intrinsic(lambda typing, a: typed(a))
    if arity == 2:
        return intrinsic(lambda typing, a, b: typed(a, b))
    return intrinsic(lambda typing, a, b, c: typed(a, b, c))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an LLVM intrinsic by its full name (`declare_intrinsic` knows no vector types)."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def _constant(register: Any, value: Any) -> Any:
    return ir.Constant(register, [value] * register.count)


def _splat(builder: Any, register: Any, scalar: Any) -> Any:
    undefined = ir.Constant(register, ir.Undefined)
    lane = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(lane, undefined, _constant(ir.VectorType(I32, register.count), 0))


def _load(builder: Any, kind: Any, address: Any, offset: Any = 0) -> Any:
    place = builder.add(address, I64(offset) if isinstance(offset, int) else offset)
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def _store(builder: Any, value: Any, address: Any, offset: Any = 0) -> None:
    place = builder.add(address, I64(offset) if isinstance(offset, int) else offset)
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=1)


# --- making and moving vectors ------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def zeros(typing, rows, tokens):
    """`zeros(2, 4)`: f32 zeros in a grid of 2 x 4 registers; both numbers are literals."""
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
        return None
    vec = Vec("f32", rows.literal_value, tokens.literal_value)

    def generate(context, builder, sig, args):
        return _join(builder, vec, [_constant(vec.register, 0.0)] * vec.count)

    return vec(rows, tokens), generate


@intrinsic
def splat(typing, x):
    """A number in every lane of one f32 register."""
    vec = ONE_F32

    def generate(context, builder, sig, args):
        return _splat(builder, vec.register, context.cast(builder, args[0], sig.args[0], types.float32))

    return vec(x), generate


@intrinsic
def splat_i32(typing, x):
    """A whole number in every lane of one i32 register."""
    vec = ONE_I32

    def generate(context, builder, sig, args):
        return _splat(builder, vec.register, context.cast(builder, args[0], sig.args[0], types.int32))

    return vec(x), generate


def _concatenated(builder: Any, registers: list[Any]) -> Any:
    """One register, or two side by side in a register of twice the length."""
    if len(registers) == 1:
        return registers[0]
    length = registers[0].type.count
    return builder.shuffle_vector(*registers, ir.Constant(ir.VectorType(I32, 2 * length), list(range(2 * length))))


def _column(element: str) -> Callable[[Vec], Vec]:
    return lambda like: like.of(element, tokens=1)


def _row(element: str) -> Callable[[Vec], Vec]:
    return lambda like: like.of(element, rows=1)


def _strided_loader(make: Callable[[Vec], Vec], kind: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    """A loader of 8 lanes for each row, or each token, of `like`: number i from `address + i * stride`.

    A register of two row tiles takes two of them.
    """
    return _tiled_loader(make, lambda builder, place: convert(builder, _load(builder, kind, place)))


def _tiled_loader(make: Callable[[Vec], Vec], load_one: Callable[[Any, Any], Any]) -> Any:
    def load(typing, address, stride, like):
        vec = make(like)
        tiles = vec.lanes // LANES

        def generate(context, builder, sig, args):
            places = [builder.add(args[0], builder.mul(args[1], I64(i))) for i in range(vec.count * tiles)]
            parts = [load_one(builder, place) for place in places]
            return _join(
                builder, vec, [_concatenated(builder, parts[i : i + tiles]) for i in range(0, len(parts), tiles)]
            )

        return vec(types.int64, types.int64, like), generate

    return intrinsic(load)


def _same(builder: Any, x: Any) -> Any:
    return x


def _widen_f16(builder: Any, x: Any) -> Any:
    return builder.fpext(x, ir.VectorType(F32, x.type.count))


def _widen_bf16(builder: Any, x: Any) -> Any:
    wide = builder.zext(x, ir.VectorType(I32, x.type.count))
    return builder.bitcast(builder.shl(wide, _constant(wide.type, 16)), ir.VectorType(F32, x.type.count))


def _widen_i8(builder: Any, x: Any) -> Any:
    return builder.sitofp(builder.sext(x, ir.VectorType(I32, x.type.count)), ir.VectorType(F32, x.type.count))


def _widen_u8(builder: Any, x: Any) -> Any:
    return builder.sitofp(builder.zext(x, ir.VectorType(I32, x.type.count)), ir.VectorType(F32, x.type.count))


load_rows_f32 = _strided_loader(_column("f32"), ir.VectorType(F32, LANES), _same)
load_rows_f16 = _strided_loader(_column("f32"), ir.VectorType(F16, LANES), _widen_f16)
load_rows_bf16 = _strided_loader(_column("f32"), ir.VectorType(I16, LANES), _widen_bf16)
load_rows_i8 = _strided_loader(_column("f32"), ir.VectorType(I8, LANES), _widen_i8)
load_rows_bytes = _strided_loader(_column("i8"), ir.VectorType(I8, 4 * LANES), _same)
load_tokens_f32 = _strided_loader(_row("f32"), ir.VectorType(F32, LANES), _same)


def _loader(vec: Vec, kind: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    def load(typing, address):
        def generate(context, builder, sig, args):
            return convert(builder, _load(builder, kind, args[0]))

        return vec(types.int64), generate

    return intrinsic(load)


load_f32 = _loader(ONE_F32, ir.VectorType(F32, LANES), _same)
load_f16 = _loader(ONE_F32, ir.VectorType(F16, LANES), _widen_f16)
load_bf16 = _loader(ONE_F32, ir.VectorType(I16, LANES), _widen_bf16)
load_i8 = _loader(ONE_F32, ir.VectorType(I8, LANES), _widen_i8)
load_i32 = _loader(ONE_I32, ir.VectorType(I32, LANES), _same)
load_bytes = _loader(ONE_BYTES, ir.VectorType(I8, 4 * LANES), _same)


def _load_first(builder: Any, element: Any, address: Any, count: Any) -> Any:
    """The first `count >= 1` of 8 elements; the other lanes are zero and their memory is not touched."""
    size = element.width // 8 if isinstance(element, ir.IntType) else {F16: 2, F32: 4}[element]
    value = ir.Constant(ir.VectorType(element, LANES), None)
    for lane in range(LANES):
        inside = builder.icmp_signed("<", I64(lane), count)
        x = _load(builder, element, address, builder.select(inside, I64(lane * size), I64(0)))
        value = builder.insert_element(value, builder.select(inside, x, element(0)), I32(lane))
    return value


def _partial_loader(make: Callable[[Vec], Vec], element: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    """As `_strided_loader`, but only the first `count >= 1` lanes; the others are zero."""

    def load(typing, address, stride, count, like):
        vec = make(like)

        def generate(context, builder, sig, args):
            places = [builder.add(args[0], builder.mul(args[1], I64(i))) for i in range(vec.count)]
            loaded = [_load_first(builder, element, place, args[2]) for place in places]
            return _join(builder, vec, [convert(builder, x) for x in loaded])

        return vec(types.int64, types.int64, types.int64, like), generate

    return intrinsic(load)


load_rows_partial_f32 = _partial_loader(_column("f32"), F32, _same)
load_rows_partial_f16 = _partial_loader(_column("f32"), F16, _widen_f16)
load_rows_partial_bf16 = _partial_loader(_column("f32"), I16, _widen_bf16)
load_tokens_partial_f32 = _partial_loader(_row("f32"), F32, _same)


@intrinsic
def load_partial_f32(typing, address, count):
    """The first `count >= 1` lanes of one f32 register; the others are zero and their memory is not touched."""

    def generate(context, builder, sig, args):
        return _load_first(builder, F32, args[0], args[1])

    return ONE_F32(types.int64, types.int64), generate


def _scalar_broadcaster(make: Callable[[Vec], Vec], kind: Any) -> Any:
    """A loader of one scalar for each token of `like`, token j from `address + j * stride`, repeated in all lanes."""

    def load(typing, address, stride, like):
        vec = make(like)

        def generate(context, builder, sig, args):
            register = ir.VectorType(kind, vec.lanes)
            places = [builder.mul(args[1], I64(j)) for j in range(vec.tokens)]
            loaded = [_splat(builder, register, _load(builder, kind, args[0], place)) for place in places]
            return _join(builder, vec, [builder.bitcast(x, vec.register) for x in loaded])

        return vec(types.int64, types.int64, like), generate

    return intrinsic(load)


broadcast_f32 = _scalar_broadcaster(_row("f32"), F32)
broadcast_dwords = _scalar_broadcaster(_row("i8"), I32)


@intrinsic
def load_grid(typing, address, row_stride, token_stride, like):
    """The f32 register of row i and token j from `address + i * row_stride + j * token_stride`."""

    def generate(context, builder, sig, args):
        registers = [
            _load(builder, like.register, args[0], _place(builder, args[1], args[2], row, token))
            for row in range(like.rows)
            for token in range(like.tokens)
        ]
        return _join(builder, like, registers)

    return like(types.int64, types.int64, types.int64, like), generate


@intrinsic
def store_grid(typing, address, row_stride, token_stride, value):
    """Store the register of row i and token j at `address + i * row_stride + j * token_stride`."""

    def generate(context, builder, sig, args):
        registers = iter(_split(builder, value, args[3]))
        for row in range(value.rows):
            for token in range(value.tokens):
                _store(builder, next(registers), args[0], _place(builder, args[1], args[2], row, token))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, value), generate


@intrinsic
def store_tokens(typing, address, stride, count, value):
    """Store the registers of the first `count` tokens of a single row, token j at `address + j * stride`."""

    def generate(context, builder, sig, args):
        for token, register in enumerate(_split(builder, value, args[3])):
            with builder.if_then(builder.icmp_signed("<", I64(token), args[2]), likely=True):
                _store(builder, register, args[0], builder.mul(args[1], I64(token)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, value), generate


def _place(builder: Any, row_stride: Any, token_stride: Any, row: int, token: int) -> Any:
    return builder.add(builder.mul(row_stride, I64(row)), builder.mul(token_stride, I64(token)))


@intrinsic
def store(typing, address, value):
    """Store one register as it is."""

    def generate(context, builder, sig, args):
        _store(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


F16_MAX = 65504.0


@intrinsic
def store_f16(typing, address, value):
    """Store one f32 register as f16, rounded to nearest even and saturated at +-65504, so that it stays finite."""

    def generate(context, builder, sig, args):
        limits = [_constant(value.register, limit) for limit in (-F16_MAX, F16_MAX)]
        x = _clamp(builder, args[1], *limits)
        _store(builder, builder.fptrunc(x, ir.VectorType(F16, LANES)), args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


@intrinsic
def store_bytes(typing, address, stride, value):
    """Store the low bytes of one i32 register: lanes 0..3 at `address`, lanes 4..7 at `address + stride`."""

    def generate(context, builder, sig, args):
        packed = builder.bitcast(builder.trunc(args[2], ir.VectorType(I8, LANES)), ir.VectorType(I32, 2))
        for half, place in enumerate((I64(0), args[1])):
            _store(builder, builder.extract_element(packed, I32(half)), args[0], place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), generate


@intrinsic
def tokens_of(typing, like):
    """Number of tokens of a grid, a constant."""
    return types.int64(like), lambda context, builder, sig, args: I64(like.tokens)


@intrinsic
def rows_of(typing, like):
    """Number of row registers of a grid, a constant."""
    return types.int64(like), lambda context, builder, sig, args: I64(like.rows)


# --- arithmetic ---------------------------------------------------------------------------------------------------

_FLOAT = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
_INTEGER = {operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.and_: "and_"}


def _register_operator(op: Any) -> None:
    """Give numba `op` on two vectors of the same elements."""

    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, keywords):
            if len(args) == 2 and all(isinstance(arg, Vec) for arg in args) and args[0].element == args[1].element:
                return signature(_broadcast(args[0].element, args), *args)
            return None

    @lower_builtin(op, Vec, Vec)
    def lower(context, builder, sig, args):
        name = (_FLOAT if sig.return_type.element == "f32" else _INTEGER)[op]
        return _map(builder, sig.return_type, sig.args, args, lambda b, x, y: getattr(b, name)(x, y))


for _op in _FLOAT | _INTEGER:
    _register_operator(_op)


def _named(name: str) -> Callable[..., Any]:
    """An LLVM intrinsic on f32 registers of any length."""
    return lambda builder, *registers: _call(
        builder, f"{name}.v{registers[0].type.count}f32", registers[0].type, *registers
    )


fma = _elementwise(3, "f32", _named("llvm.fma"))
"""`a * b + c`, rounded once."""
minimum = _elementwise(2, "f32", _named("llvm.minnum"))
maximum = _elementwise(2, "f32", _named("llvm.maxnum"))
absolute = _elementwise(1, "f32", _named("llvm.fabs"))
round_up = _elementwise(1, "f32", _named("llvm.ceil"))
round_even = _elementwise(1, "f32", _named("llvm.rint"))
square_root = _elementwise(1, "f32", _named("llvm.sqrt"))
copysign = _elementwise(2, "f32", _named("llvm.copysign"))
to_f32 = _elementwise(1, "f32", lambda b, x: b.sitofp(x, ir.VectorType(F32, x.type.count)))
to_i32 = _elementwise(1, "i32", lambda b, x: b.fptosi(x, ir.VectorType(I32, x.type.count)))
power_of_two = _elementwise(
    1,
    "f32",
    lambda b, n: b.bitcast(
        b.shl(b.add(n, _constant(n.type, 127)), _constant(n.type, 23)), ir.VectorType(F32, n.type.count)
    ),
)
"""2**n for i32 n in -126..127, by its bits."""


def _fold(builder: Any, register: Any, build: Callable[[Any, Any, Any], Any]) -> Any:
    """Fold the lanes of a register: halves, quarters, eighths; always in this order."""
    width = register.type.count
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(
                register, register, ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
            )
            for start in (0, width)
        )
        register = build(builder, low, high)
    return builder.extract_element(register, I32(0))


def _add(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y)


def _max(builder: Any, x: Any, y: Any) -> Any:
    return _call(builder, f"llvm.maxnum.v{x.type.count}f32", x.type, x, y)


def _reduction(build: Callable[[Any, Any, Any], Any]) -> Any:
    def reduce(typing, x):
        return types.float32(x), lambda context, builder, sig, args: _fold(builder, args[0], build)

    return intrinsic(reduce)


sum_lanes = _reduction(_add)
max_lanes = _reduction(_max)


def _clamp(builder: Any, x: Any, low: Any, high: Any) -> Any:
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    return builder.select(builder.fcmp_ordered(">", x, high), high, x)


clamp = _elementwise(3, "f32", _clamp)
"""`clamp(x, low, high)`; NaN stays NaN."""


@intrinsic
def sum_lanes_i32(typing, x):
    """Sum of the lanes of one i32 register."""

    def generate(context, builder, sig, args):
        return _call(builder, "llvm.vector.reduce.add.v8i32", I32, args[0])

    return types.int32(x), generate


@intrinsic
def store_sums(typing, address, row_stride, token_stride, value):
    """Store the sum of lanes (as `sum_lanes`) of row i and token j, one f32, at `address + i * ... + j * ...`."""

    def generate(context, builder, sig, args):
        registers = iter(_split(builder, value, args[3]))
        for row in range(value.rows):
            for token in range(value.tokens):
                total = _fold(builder, next(registers), _add)
                _store(builder, total, args[0], _place(builder, args[1], args[2], row, token))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, value), generate


@intrinsic
def where_less(typing, a, b, yes, no):
    """`yes` where `a < b`, else `no`, lane by lane; all are single f32 registers. NaN is not less."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return yes(a, b, yes, no), generate


@intrinsic
def blend_first(typing, count, a, b):
    """Lanes below `count` from `a`, the others from `b`."""

    def generate(context, builder, sig, args):
        lanes = ir.VectorType(I32, LANES)
        below = _splat(builder, lanes, builder.trunc(args[0], I32))
        mask = builder.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), below)
        return _map(builder, sig.return_type, (a, b), args[1:], lambda bld, x, y: bld.select(mask, x, y))

    return _broadcast(a.element, (a, b))(types.int64, a, b), generate


# --- packed codes: the seam between instruction sets ----------------------------------------------------------------


class _Dot:
    """Dot products of packed codes in plain LLVM vectors: right on every machine, and what the others must equal.

    `u4` multiplies codes 0..15, `i8` codes -127..127, both by int8 activations in -127..127; each sums the 4 bytes of
    every 32-bit lane into its accumulator. A subclass replaces what its instruction set does better.
    """

    tiles = 1
    """Row tiles that a register of matrix products holds side by side."""
    u4 = "i32"
    """Elements of the accumulator of `u4`."""
    u4_scales = "f32"
    """Elements of the scales that it meets."""

    def load_scales(self, builder: Any, address: Any) -> Any:
        """The 8 u8 scales of a block, for `u4_scaled`."""
        return _widen_u8(builder, _load(builder, ir.VectorType(I8, LANES), address))

    def u4_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        """`acc` + dot of one chunk."""
        return self.i8_dot(builder, acc, codes, x)

    def u4_scaled(self, builder: Any, acc: Any, scales: Any) -> Any:
        """Product of the dot and the block's scales, f32; exact, since it stays below 2**24 (32 * 15 * 127 * 255)."""
        return builder.fmul(builder.sitofp(acc, scales.type), scales)

    def i8_start(self, builder: Any, register: Any, start: Any) -> Any:
        """Where the accumulator of `i8` begins; `start` is -128 times the sum of the activations."""
        return _constant(register, 0)

    def i8_codes(self, builder: Any, codes: Any) -> Any:
        """Codes in the form that `i8_dot` takes."""
        return codes

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        """`acc` + dot of one chunk, i32."""
        codes, x = builder.bitcast(codes, acc.type), builder.bitcast(x, acc.type)
        for byte in range(4):
            up, down = _constant(acc.type, 24 - 8 * byte), _constant(acc.type, 24)
            parts = [builder.ashr(builder.shl(v, up), down) for v in (codes, x)]
            acc = builder.add(acc, builder.mul(*parts))
        return acc


class _DotAvx2(_Dot):
    """maddubs: u8 x i8 pairs into int16. Sums of 8 products of nibbles stay below 2**15 (8 * 2 * 15 * 127 = 30480)."""

    u4 = u4_scales = "i16"
    WORDS = ir.VectorType(I16, 16)
    DWORDS = ir.VectorType(I32, 8)

    def load_scales(self, builder: Any, address: Any) -> Any:
        wide = builder.zext(_load(builder, ir.VectorType(I8, LANES), address), self.DWORDS)
        return builder.bitcast(builder.or_(wide, builder.shl(wide, _constant(wide.type, 16))), self.WORDS)

    def u4_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return builder.add(acc, self._maddubs(builder, codes, x))

    def u4_scaled(self, builder: Any, acc: Any, scales: Any) -> Any:
        # The scale stands in both halves of a lane, so the horizontal sum and the product are one instruction.
        product = _call(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, acc, scales)
        return builder.sitofp(product, ir.VectorType(F32, LANES))

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        magnitude = _call(builder, "llvm.abs.v32i8", codes.type, codes, I1(0))
        signed = _call(builder, "llvm.x86.avx2.psign.b", codes.type, x, codes)
        pairs = self._maddubs(builder, magnitude, signed)
        return builder.add(acc, _call(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, pairs, _constant(self.WORDS, 1)))

    def _maddubs(self, builder: Any, codes: Any, x: Any) -> Any:
        return _call(builder, "llvm.x86.avx2.pmadd.ub.sw", self.WORDS, codes, x)


class _DotVnni(_Dot):
    """AVX-512 VNNI: vpdpbusd, u8 x i8 quadruples straight into int32, on two row tiles at once where both are there."""

    tiles = 2

    def u4_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}", acc.type, acc, codes, x)

    def i8_start(self, builder: Any, register: Any, start: Any) -> Any:
        return start

    def i8_codes(self, builder: Any, codes: Any) -> Any:
        # The instruction takes unsigned codes: 128 more than they are, which `i8_start` takes back.
        return builder.xor(codes, _constant(codes.type, -128))

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return self.u4_dot(builder, acc, codes, x)


_DOTS: dict[str, tuple[_Dot, tuple[str, ...]]] = {
    "avx512vnni": (_DotVnni(), ("avx2", "avx512vnni", "avx512vl")),
    "avx2": (_DotAvx2(), ("avx2",)),
    "generic": (_Dot(), ()),
}
"""Instruction sets, best first, with the CPU features that each needs."""


def _choose() -> str:
    features = llvm.get_host_cpu_features()
    usable = [name for name, (_, needs) in _DOTS.items() if all(features.get(need) for need in needs)]
    forced = os.environ.get("QUANTKIT_ISA")
    if forced and forced not in usable:
        raise RuntimeError(f"QUANTKIT_ISA={forced}: this machine offers {', '.join(usable)}")
    return forced or usable[0]


ISA = _choose()
"""The instruction set in use: the best that this machine has, or the one that `QUANTKIT_ISA` names."""
_DOT = _DOTS[ISA][0]
TILES = _DOT.tiles
"""Row tiles that a register of `zeros_tiles` holds."""


@intrinsic(prefer_literal=True)
def zeros_tiles(typing, tokens):
    """f32 zeros for `TILES` row tiles and a literal number of tokens: a grid of 1 x tokens registers."""
    vec = Vec("f32", 1, tokens.literal_value, TILES * LANES)

    def generate(context, builder, sig, args):
        return _join(builder, vec, [_constant(vec.register, 0.0)] * vec.count)

    return vec(tokens), generate


low_nibbles = _elementwise(1, "i8", lambda b, q: b.and_(q, _constant(q.type, 15)))
"""Codes in the low halves of packed bytes."""


def _high(builder: Any, codes: Any) -> Any:
    words = ir.VectorType(I16, codes.type.count // 2)
    shifted = builder.lshr(builder.bitcast(codes, words), _constant(words, 4))
    return builder.and_(builder.bitcast(shifted, codes.type), _constant(codes.type, 15))


high_nibbles = _elementwise(1, "i8", _high)
"""Codes in the high halves of packed bytes."""


@intrinsic
def zero_dot_u4(typing, like):
    """Where `dot_u4` begins."""
    vec = like.of(_DOT.u4)

    def generate(context, builder, sig, args):
        return _join(builder, vec, [_constant(vec.register, 0)] * vec.count)

    return vec(like), generate


@intrinsic
def start_dot_i8(typing, address, stride, like):
    """Where `dot_i8` begins; for token j an i32 at `address + j * stride`: -128 times the sum of its activations."""
    vec = like.of("i32")

    def generate(context, builder, sig, args):
        places = [builder.mul(args[1], I64(j)) for j in range(vec.tokens)]
        sums = [_splat(builder, vec.register, _load(builder, I32, args[0], place)) for place in places]
        starts = [_DOT.i8_start(builder, vec.register, x) for x in sums]
        return _join(builder, vec, [starts[token] for _ in range(vec.rows) for token in range(vec.tokens)])

    return vec(types.int64, types.int64, like), generate


codes_i8 = _elementwise(1, "i8", _DOT.i8_codes)
"""Codes -127..127 in the form that `dot_i8` takes."""
dot_u4 = _elementwise(3, _DOT.u4, _DOT.u4_dot)
"""`dot_u4(acc, codes, x)`: add the dot products of codes 0..15 with int8 activations."""
dot_i8 = _elementwise(3, "i32", _DOT.i8_dot)
"""`dot_i8(acc, codes, x)`: add the dot products of codes -127..127 with int8 activations."""
scale_u4 = _elementwise(2, "f32", _DOT.u4_scaled)
"""`scale_u4(acc, scales)`: exact product of finished dots and block scales, f32."""


load_scales_u4 = _tiled_loader(_column(_DOT.u4_scales), _DOT.load_scales)
"""Block scales of each row tile, in the form that `scale_u4` takes."""
load_scales_f32 = _tiled_loader(_column("f32"), _Dot().load_scales)
"""Block scales of each row tile, f32."""


FOUR_BYTES = ir.VectorType(I8, 4)


@intrinsic
def load_codes_i8(typing, address, stride):
    """8 codes of a row of an `int8` block as f32: 4 bytes at `address`, 4 of the next chunk at `address + stride`."""

    def generate(context, builder, sig, args):
        codes = _concatenated(builder, [_load(builder, FOUR_BYTES, args[0]), _load(builder, FOUR_BYTES, *args)])
        return _widen_i8(builder, codes)

    return ONE_F32(types.int64, types.int64), generate


@intrinsic
def load_codes_u4(typing, address):
    """8 codes of a row of an `int4` block, from its 4 bytes of a chunk, as f32."""

    def generate(context, builder, sig, args):
        packed = _load(builder, FOUR_BYTES, args[0])
        low = builder.and_(packed, _constant(FOUR_BYTES, 15))
        high = builder.lshr(packed, _constant(FOUR_BYTES, 4))
        wide = builder.zext(_concatenated(builder, [low, high]), ir.VectorType(I32, LANES))
        return builder.sitofp(wide, ONE_F32.register)

    return ONE_F32(types.int64), generate


# --- scalars, threads, memory -----------------------------------------------------------------------------------------


def _scalar_loader(kind: Any, result: Any) -> Any:
    def load(typing, address):
        def generate(context, builder, sig, args):
            return _load(builder, kind, args[0])

        return result(types.int64), generate

    return intrinsic(load)


def _scalar_storer(kind: Any, number: Any) -> Any:
    def put(typing, address, value):
        def generate(context, builder, sig, args):
            _store(builder, context.cast(builder, args[1], sig.args[1], number), args[0])
            return context.get_dummy_value()

        return types.void(types.int64, value), generate

    return intrinsic(put)


get_u8 = _scalar_loader(I8, types.uint8)
get_i8 = _scalar_loader(I8, types.int8)
get_i32 = _scalar_loader(I32, types.int32)
get_i64 = _scalar_loader(I64, types.int64)
get_f32 = _scalar_loader(F32, types.float32)
put_i32 = _scalar_storer(I32, types.int32)
put_i64 = _scalar_storer(I64, types.int64)
put_f32 = _scalar_storer(F32, types.float32)


@intrinsic
def put_f16(typing, address, value):
    """Store an f32 as f16, rounded to nearest even and saturated at +-65504."""

    def generate(context, builder, sig, args):
        x = context.cast(builder, args[1], sig.args[1], types.float32)
        _store(builder, builder.fptrunc(_clamp(builder, x, F32(-F16_MAX), F32(F16_MAX)), F16), args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


@intrinsic
def atomic_add(typing, address, value):
    """Add to an i64 at once for all threads; returns what was there before."""

    def generate(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_load(typing, address):
    """Read an i64 that other threads write; what they wrote before it is visible afterwards."""

    def generate(context, builder, sig, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def atomic_store(typing, address, value):
    """Write an i64 that other threads read; what was written before it becomes visible with it."""

    def generate(context, builder, sig, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def cpu_relax(typing):
    """Tell the core that this is a waiting loop."""

    def generate(context, builder, sig, args):
        if "x86" in builder.module.triple or builder.module.triple.startswith("i"):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif builder.module.triple.startswith(("aarch64", "arm64")):
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def yield_thread(typing):
    """Let the operating system run another thread (`sched_yield`)."""

    def generate(context, builder, sig, args):
        _call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), generate


def _semaphore(name: str) -> Any:
    def operate(typing, address):
        def generate(context, builder, sig, args):
            return _call(builder, name, I32, builder.inttoptr(args[0], I8.as_pointer()))

        return types.int32(types.int64), generate

    return intrinsic(operate)


semaphore_post = _semaphore("sem_post")
"""POSIX `sem_post` on an initialized `sem_t`."""
semaphore_wait = _semaphore("sem_wait")
"""POSIX `sem_wait`; may return early on a signal."""


@intrinsic
def prefetch(typing, address):
    """Ask for the cache line at `address`, to be read soon; never faults."""

    def generate(context, builder, sig, args):
        pointer = builder.inttoptr(args[0], I8.as_pointer())
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def nanoseconds(typing):
    """Monotonic time in nanoseconds (`clock_gettime`)."""

    def generate(context, builder, sig, args):
        pair = builder.alloca(ir.ArrayType(I64, 2))
        _call(builder, "clock_gettime", I32, I32(1), pair)
        seconds, rest = (builder.load(builder.gep(pair, [I32(0), I32(i)])) for i in range(2))
        return builder.add(builder.mul(seconds, I64(1_000_000_000)), rest)

    return types.int64(), generate
