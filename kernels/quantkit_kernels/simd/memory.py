"""Vectors made, loaded and stored: floats of any width, strided rows and tokens, partial and broadcast loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .registers import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    WIDE,
    call_llvm,
    concatenated,
    constant,
    first_lanes,
    grid_place,
    load_at,
    splat_scalar,
    store_at,
    token_place,
)
from .vectors import ONE_BYTES, ONE_F32, ONE_I32, Vec, join, split


def zeros_of(lanes: int, element: str = "f32") -> Any:
    """Make a function of two literals: zeros in a grid of `rows` x `tokens` registers of `lanes` lanes."""

    def zeros(typing, rows, tokens):
        if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
            return None
        vec = Vec(element, rows.literal_value, tokens.literal_value, lanes)

        def generate(context, builder, sig, args):
            return join(builder, vec, [ir.Constant(vec.register, None)] * vec.count)

        return vec(rows, tokens), generate

    return intrinsic(prefer_literal=True)(zeros)


zeros = zeros_of(LANES)
"""`zeros(2, 4)`: f32 zeros in a grid of 2 x 4 registers; both numbers are literals."""
zeros_wide = zeros_of(WIDE)
"""As `zeros`, of registers of `WIDE` lanes on every machine; LLVM splits them where the machine's are shorter."""
zeros_wide_i32 = zeros_of(WIDE, "i32")
"""As `zeros_wide`, of whole numbers."""


@intrinsic
def splat_wide(typing, x):
    """A number in every lane of one f32 register of `WIDE` lanes."""
    vec = Vec("f32", lanes=WIDE)

    def generate(context, builder, sig, args):
        return splat_scalar(builder, vec.register, context.cast(builder, args[0], sig.args[0], types.float32))

    return vec(x), generate


@intrinsic
def splat(typing, x):
    """A number in every lane of one f32 register."""
    vec = ONE_F32

    def generate(context, builder, sig, args):
        return splat_scalar(builder, vec.register, context.cast(builder, args[0], sig.args[0], types.float32))

    return vec(x), generate


@intrinsic
def splat_i32(typing, x):
    """A whole number in every lane of one i32 register."""
    vec = ONE_I32

    def generate(context, builder, sig, args):
        return splat_scalar(builder, vec.register, context.cast(builder, args[0], sig.args[0], types.int32))

    return vec(x), generate


def stride_type(stride: Any) -> Any:
    """The type of a stride of tokens, as `registers.token_place` takes it: an i64 or two."""
    return stride if isinstance(stride, types.UniTuple) else types.int64


def column(element: str) -> Callable[[Vec], Vec]:
    return lambda like: like.of(element, tokens=1)


def row_of(element: str) -> Callable[[Vec], Vec]:
    return lambda like: like.of(element, rows=1)


def _strided_loader(make: Callable[[Vec], Vec], kind: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    """Make a loader of 8 lanes for each row, or each token, of `like`: number i from `address + i * stride`.

    A register of two row tiles is filled by two loads.
    """
    return tiled_loader(make, lambda builder, place: convert(builder, load_at(builder, kind, place)))


def tiled_loader(make: Callable[[Vec], Vec], load_one: Callable[[Any, Any], Any]) -> Any:
    def load(typing, address, stride, like):
        vec = make(like)
        tiles = vec.lanes // LANES

        def generate(context, builder, sig, args):
            places = [builder.add(args[0], builder.mul(args[1], I64(i))) for i in range(vec.count * tiles)]
            parts = [load_one(builder, place) for place in places]
            return join(
                builder, vec, [concatenated(builder, parts[i : i + tiles]) for i in range(0, len(parts), tiles)]
            )

        return vec(types.int64, types.int64, like), generate

    return intrinsic(load)


def _same(builder: Any, x: Any) -> Any:
    return x


def _widen_f16(builder: Any, x: Any) -> Any:
    return builder.fpext(x, ir.VectorType(F32, x.type.count))


def _widen_bf16(builder: Any, x: Any) -> Any:
    wide = builder.zext(x, ir.VectorType(I32, x.type.count))
    return builder.bitcast(builder.shl(wide, constant(wide.type, 16)), ir.VectorType(F32, x.type.count))


def widen_i8(builder: Any, x: Any) -> Any:
    return builder.sitofp(builder.sext(x, ir.VectorType(I32, x.type.count)), ir.VectorType(F32, x.type.count))


def _extend_i8(builder: Any, x: Any) -> Any:
    return builder.sext(x, ir.VectorType(I16, x.type.count))


load_rows_f32 = _strided_loader(column("f32"), ir.VectorType(F32, LANES), _same)
load_rows_f16 = _strided_loader(column("f32"), ir.VectorType(F16, LANES), _widen_f16)
load_rows_bf16 = _strided_loader(column("f32"), ir.VectorType(I16, LANES), _widen_bf16)
load_rows_i8 = _strided_loader(column("f32"), ir.VectorType(I8, LANES), widen_i8)
load_rows_bytes = _strided_loader(column("i8"), ir.VectorType(I8, 4 * LANES), _same)
load_tokens_f32 = _strided_loader(row_of("f32"), ir.VectorType(F32, LANES), _same)


def _loader(vec: Vec, kind: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    def load(typing, address):
        def generate(context, builder, sig, args):
            return convert(builder, load_at(builder, kind, args[0]))

        return vec(types.int64), generate

    return intrinsic(load)


load_f32 = _loader(ONE_F32, ir.VectorType(F32, LANES), _same)
load_f16 = _loader(ONE_F32, ir.VectorType(F16, LANES), _widen_f16)
load_bf16 = _loader(ONE_F32, ir.VectorType(I16, LANES), _widen_bf16)
load_i8 = _loader(ONE_F32, ir.VectorType(I8, LANES), widen_i8)
load_line_f32 = _loader(Vec("f32", lanes=WIDE), ir.VectorType(F32, WIDE), _same)
"""One register of `WIDE` lanes."""
load_i32 = _loader(ONE_I32, ir.VectorType(I32, LANES), _same)
load_bytes = _loader(ONE_BYTES, ir.VectorType(I8, 4 * LANES), _same)


def _wide_loader(element: str, kind: Any, size: int, convert: Callable[[Any, Any], Any]) -> Any:
    """Make a loader of consecutive numbers: as many registers as `like` has rows, each of as many lanes as `like`."""

    def load(typing, address, like):
        vec = like.of(element, tokens=1)
        register = ir.VectorType(kind, vec.register.count)

        def generate(context, builder, sig, args):
            places = [register.count * size * row for row in range(vec.rows)]
            return join(builder, vec, [convert(builder, load_at(builder, register, args[0], at)) for at in places])

        return vec(types.int64, like), generate

    return intrinsic(load)


load_wide_f32 = _wide_loader("f32", F32, 4, _same)
load_wide_i16 = _wide_loader("i16", I16, 2, _same)
load_wide_i8_as_i16 = _wide_loader("i16", I8, 1, _extend_i8)


@intrinsic
def load_wide_partial_f32(typing, address, count):
    """The first `count` of `WIDE` f32 lanes; the others are zero and their memory is not touched."""
    vec = Vec("f32", lanes=WIDE)

    def generate(context, builder, sig, args):
        mask = first_lanes(builder, args[1], WIDE)
        pointer = builder.inttoptr(args[0], vec.register.as_pointer())
        zero = constant(vec.register, 0.0)
        return call_llvm(builder, f"llvm.masked.load.v{WIDE}f32.p0", vec.register, pointer, I32(4), mask, zero)

    return vec(types.int64, types.int64), generate


def _load_first(builder: Any, element: Any, address: Any, count: Any) -> Any:
    """The first `count >= 1` of 8 elements; the other lanes are zero and their memory is not touched."""
    size = element.width // 8 if isinstance(element, ir.IntType) else {F16: 2, F32: 4}[element]
    value = ir.Constant(ir.VectorType(element, LANES), None)
    for lane in range(LANES):
        inside = builder.icmp_signed("<", I64(lane), count)
        x = load_at(builder, element, address, builder.select(inside, I64(lane * size), I64(0)))
        value = builder.insert_element(value, builder.select(inside, x, element(0)), I32(lane))
    return value


def _partial_loader(make: Callable[[Vec], Vec], element: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    """As `_strided_loader`, but only the first `count >= 1` lanes; the others are zero."""

    def load(typing, address, stride, count, like):
        vec = make(like)

        def generate(context, builder, sig, args):
            places = [builder.add(args[0], builder.mul(args[1], I64(i))) for i in range(vec.count)]
            loaded = [_load_first(builder, element, place, args[2]) for place in places]
            return join(builder, vec, [convert(builder, x) for x in loaded])

        return vec(types.int64, types.int64, types.int64, like), generate

    return intrinsic(load)


load_rows_partial_f32 = _partial_loader(column("f32"), F32, _same)
load_rows_partial_f16 = _partial_loader(column("f32"), F16, _widen_f16)
load_rows_partial_bf16 = _partial_loader(column("f32"), I16, _widen_bf16)
load_tokens_partial_f32 = _partial_loader(row_of("f32"), F32, _same)


@intrinsic
def load_partial_f32(typing, address, count):
    """The first `count >= 1` lanes of one f32 register; the others are zero and their memory is not touched."""

    def generate(context, builder, sig, args):
        return _load_first(builder, F32, args[0], args[1])

    return ONE_F32(types.int64, types.int64), generate


def _scalar_broadcaster(make: Callable[[Vec], Vec], kind: Any) -> Any:
    """Make a loader that repeats one scalar in all lanes, for each token of `like` its own.

    They stand `stride` bytes apart, or as `registers.token_place` says.
    """

    def load(typing, address, stride, like):
        vec = make(like)

        def generate(context, builder, sig, args):
            register = ir.VectorType(kind, vec.lanes)
            places = [token_place(builder, args[1], token, vec.tokens) for token in range(vec.tokens)]
            loaded = [splat_scalar(builder, register, load_at(builder, kind, args[0], place)) for place in places]
            return join(builder, vec, [builder.bitcast(x, vec.register) for x in loaded])

        return vec(types.int64, stride_type(stride), like), generate

    return intrinsic(load)


broadcast_f32 = _scalar_broadcaster(row_of("f32"), F32)
broadcast_dwords = _scalar_broadcaster(row_of("i8"), I32)


@intrinsic
def load_grid(typing, address, row_stride, token_stride, like):
    """The f32 register of row i and token j from `address + i * row_stride + j * token_stride`."""

    def generate(context, builder, sig, args):
        registers = [
            load_at(builder, like.register, args[0], grid_place(builder, args[1], args[2], row, token, like.tokens))
            for row in range(like.rows)
            for token in range(like.tokens)
        ]
        return join(builder, like, registers)

    return like(types.int64, types.int64, types.int64, like), generate


@intrinsic
def store_grid(typing, address, row_stride, token_stride, value):
    """Store the register of row i and token j at `address + i * row_stride + j * token_stride`.

    The latter may be two numbers, see `registers.token_place`.
    """

    def generate(context, builder, sig, args):
        registers = iter(split(builder, value, args[3]))
        for row in range(value.rows):
            for token in range(value.tokens):
                place = grid_place(builder, args[1], args[2], row, token, value.tokens)
                store_at(builder, next(registers), args[0], place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, stride_type(token_stride), value), generate


@intrinsic
def store(typing, address, value):
    """Store one register as it is."""

    def generate(context, builder, sig, args):
        store_at(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


def _narrow_i8(builder: Any, x: Any) -> Any:
    return builder.trunc(x, ir.VectorType(I8, x.type.count))


def _narrow_i16(builder: Any, x: Any) -> Any:
    return builder.trunc(x, ir.VectorType(I16, x.type.count))


def _pairs_of(narrow: Callable[[Any, Any], Any], both: Any) -> Callable[[Any, Any], Any]:
    """Narrow, and take two neighbours as one number of type `both`."""
    return lambda builder, x: builder.bitcast(narrow(builder, x), ir.VectorType(both, x.type.count // 2))


def _scatterer(narrow: Callable[[Any, Any], Any]) -> Any:
    """Make a strided store of the numbers of one narrowed register: number i at `address + i * stride`."""

    def scatter(typing, address, stride, value):
        def generate(context, builder, sig, args):
            narrowed = narrow(builder, args[2])
            for lane in range(narrowed.type.count):
                place = builder.mul(args[1], I64(lane))
                store_at(builder, builder.extract_element(narrowed, I32(lane)), args[0], place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, value), generate

    return intrinsic(scatter)


scatter_f32 = _scatterer(_same)
scatter_i16, scatter_i8 = _scatterer(_narrow_i16), _scatterer(_narrow_i8)
"""The low halves, or the low bytes, of an i32 register."""
scatter_pairs_i16, scatter_pairs_i8 = _scatterer(_pairs_of(_narrow_i16, I32)), _scatterer(_pairs_of(_narrow_i8, I16))
"""The same, two neighbours side by side: lanes 2i and 2i + 1 at `address + i * stride`."""


def _narrow_store(narrow: Callable[[Any, Any], Any]) -> Any:
    def store(typing, address, value):
        def generate(context, builder, sig, args):
            store_at(builder, narrow(builder, args[1]), args[0])
            return context.get_dummy_value()

        return types.void(types.int64, value), generate

    return intrinsic(store)


store_i16, store_i8 = _narrow_store(_narrow_i16), _narrow_store(_narrow_i8)
"""Store the low halves, or the low bytes, of one i32 register."""


@intrinsic
def store_bytes(typing, address, stride, value):
    """Store the low bytes of one i32 register: lanes 0..3 at `address`, lanes 4..7 at `address + stride`."""

    def generate(context, builder, sig, args):
        packed = builder.bitcast(builder.trunc(args[2], ir.VectorType(I8, LANES)), ir.VectorType(I32, 2))
        for half, place in enumerate((I64(0), args[1])):
            store_at(builder, builder.extract_element(packed, I32(half)), args[0], place)
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


@intrinsic
def tiles_of(typing, like):
    """Number of row tiles that a register holds side by side, a constant."""
    return types.int64(like), lambda context, builder, sig, args: I64(like.lanes // LANES)
