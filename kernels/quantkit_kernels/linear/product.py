"""Matrix products with a weight of any kind: an entry for each, which is called by its address.

So only the kinds that a model has are compiled. `packed.py` and `plain.py` compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear import packed, plain
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.simd import call, record_at, record_on_stack

OPERANDS = np.dtype([
    ("data", "i8"), ("row_scales", "i8"), ("bias", "i8"), ("rows", "i8"), ("columns", "i8"),
    ("x", "i8"), ("x_stride", "i8"), ("y", "i8"), ("y_stride", "i8"), ("tokens", "i8"),
])  # fmt: skip
"""What a product takes besides row tiles: the fields of a `Matrix` and of two `Rows`, and how many tokens."""

_operands_at, _operands_on_stack = record_at(OPERANDS), record_on_stack(OPERANDS)


@jit
def multiply(product, matrix, x, y, tokens, first, last):
    """Row tiles `first` to `last` of a matrix, for all tokens; `product` is the address of one of `PRODUCTS`."""
    operands = _operands_on_stack()
    to = _operands_at(operands)
    to.data, to.row_scales, to.bias = matrix.data, matrix.row_scales, matrix.bias
    to.rows, to.columns, to.tokens = matrix.rows, matrix.columns, tokens
    to.x, to.x_stride, to.y, to.y_stride = x.address, x.stride, y.address, y.stride
    call(product, (operands, first, last))


@jit
def _operands(address):
    of = _operands_at(address)
    matrix = Matrix(of.data, of.row_scales, of.bias, of.rows, of.columns)
    return matrix, Rows(of.x, of.x_stride), Rows(of.y, of.y_stride), of.tokens


@jit(entry=True)
def int4(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    packed.linear_int4(matrix, x, y, tokens, first, last)


@jit(entry=True)
def int5(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    packed.linear_int5(matrix, x, y, tokens, first, last)


@jit(entry=True)
def int6(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    packed.linear_int6(matrix, x, y, tokens, first, last)


@jit(entry=True)
def int8(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    packed.linear_int8(matrix, x, y, tokens, first, last)


@jit(entry=True)
def f16(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    plain.linear_f16(matrix, x, y, tokens, first, last)


@jit(entry=True)
def bf16(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    plain.linear_bf16(matrix, x, y, tokens, first, last)


@jit(entry=True)
def f32(operands, first, last):
    matrix, x, y, tokens = _operands(operands)
    plain.linear_f32(matrix, x, y, tokens, first, last)


PRODUCTS: Mapping[str, Any] = MappingProxyType(
    {"int4": int4, "int5": int5, "int6": int6, "int8": int8, "f16": f16, "bf16": bf16, "f32": f32}
)
"""The product of each kind of weight."""
