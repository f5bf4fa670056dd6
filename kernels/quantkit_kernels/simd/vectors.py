"""The vector type that numba learns here, and the functions that generate code for it.

A `Vec` is a grid of registers, which `registers.py` fills and joins. The functions here run while numba compiles: they
take llvmlite's builder and values. What kernels call is in `memory.py`, `arithmetic.py`, `codes.py` and `scalars.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from .registers import ELEMENTS, LANES, PER_LANE


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


def split(builder: Any, vec: Vec, value: Any) -> list[Any]:
    return [value] if vec.count == 1 else [builder.extract_value(value, i) for i in range(vec.count)]


def join(builder: Any, vec: Vec, registers: list[Any]) -> Any:
    if vec.count == 1:
        return registers[0]
    value = ir.Constant(ir.ArrayType(vec.register, vec.count), ir.Undefined)
    for i, register in enumerate(registers):
        value = builder.insert_value(value, register, i)
    return value


def map_grid(
    builder: Any, result: Vec, vecs: tuple[Vec, ...], values: tuple[Any, ...], build: Callable[..., Any]
) -> Any:
    """Apply `build(builder, *registers)` at every place of the result's grid; a single row or token is reused."""
    operands = [split(builder, vec, value) for vec, value in zip(vecs, values, strict=True)]
    registers = []
    for row in range(result.rows):
        for token in range(result.tokens):
            places = [(row if v.rows > 1 else 0) * v.tokens + (token if v.tokens > 1 else 0) for v in vecs]
            registers.append(build(builder, *(parts[i] for parts, i in zip(operands, places, strict=True))))
    return join(builder, result, registers)


def broadcast(element: str, vecs: tuple[Vec, ...]) -> Vec:
    return vecs[0].of(element, max(v.rows for v in vecs), max(v.tokens for v in vecs))


def elementwise(arity: int, result: str, build: Callable[..., Any]) -> Any:
    """Make an intrinsic of `arity` vectors whose registers are `build(builder, *registers)`, of elements `result`."""

    def typed(*vecs: Vec) -> tuple[Any, Any]:
        vec = broadcast(result, vecs)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return map_grid(builder, vec, vecs, args, build)

        return vec(*vecs), generate

    if arity == 1:
        return intrinsic(lambda typing, a: typed(a))
    if arity == 2:
        return intrinsic(lambda typing, a, b: typed(a, b))
    return intrinsic(lambda typing, a, b, c: typed(a, b, c))
