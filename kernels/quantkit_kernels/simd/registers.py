"""Registers as LLVM sees them: the types of their elements, and how they are filled, stored, joined and split.

llvmlite alone, no numba: what is here runs while code is generated, and takes llvmlite's builder and values.
`vectors.py` makes types of numba's of registers, `instruction_sets.py` multiplies them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
ELEMENTS = {"i8": I8, "i16": I16, "i32": I32, "f32": F32}
PER_LANE = {"i8": 4, "i16": 2, "i32": 1, "f32": 1}
"""Elements in the 32 bits of a lane."""
LANES = 8
"""32-bit lanes of a register, one for each row of a block; 2 * LANES where a register holds two row tiles side by
side."""
WIDE = 16
"""Lanes of a register that is a whole cache line."""


def call_llvm(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an LLVM intrinsic by its full name (`declare_intrinsic` knows no vector types)."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def constant(register: Any, value: Any) -> Any:
    return ir.Constant(register, [value] * register.count)


def splat_scalar(builder: Any, register: Any, scalar: Any) -> Any:
    undefined = ir.Constant(register, ir.Undefined)
    lane = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(lane, undefined, constant(ir.VectorType(I32, register.count), 0))


def first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """The mask of the lanes below `count`, an i64."""
    numbers = ir.VectorType(I32, lanes)
    below = splat_scalar(builder, numbers, builder.trunc(count, I32))
    return builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), below)


def load_at(builder: Any, kind: Any, address: Any, offset: Any = 0) -> Any:
    place = builder.add(address, I64(offset) if isinstance(offset, int) else offset)
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=1)


def store_at(builder: Any, value: Any, address: Any, offset: Any = 0) -> None:
    place = builder.add(address, I64(offset) if isinstance(offset, int) else offset)
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=1)


def concatenated(builder: Any, registers: list[Any]) -> Any:
    """One register, or two side by side in a register of twice the length."""
    if len(registers) == 1:
        return registers[0]
    length = registers[0].type.count
    return builder.shuffle_vector(*registers, ir.Constant(ir.VectorType(I32, 2 * length), list(range(2 * length))))


def halves(builder: Any, register: Any) -> list[Any]:
    """The opposite of `concatenated`: the lower and the upper half of a register."""
    length = register.type.count // 2
    lanes = [ir.Constant(ir.VectorType(I32, length), list(range(at, at + length))) for at in (0, length)]
    return [builder.shuffle_vector(register, register, part) for part in lanes]


def token_place(builder: Any, stride: Any, token: int, tokens: int) -> Any:
    """Where a token of a grid stands behind the first one.

    `stride` is the bytes from one token to the next; or two numbers: within each half of the grid's tokens, and from
    the first half to the second. Halves may overlap.
    """
    if stride.type == I64:
        return builder.mul(stride, I64(token))
    within, between = (builder.extract_value(stride, place) for place in range(2))
    half = max(tokens // 2, 1)
    return builder.add(builder.mul(within, I64(token % half)), builder.mul(between, I64(token // half)))


def grid_place(builder: Any, row_stride: Any, token_stride: Any, row: int, token: int, tokens: int) -> Any:
    return builder.add(builder.mul(row_stride, I64(row)), token_place(builder, token_stride, token, tokens))


def widen_u8(builder: Any, x: Any) -> Any:
    return builder.sitofp(builder.zext(x, ir.VectorType(I32, x.type.count)), ir.VectorType(F32, x.type.count))
