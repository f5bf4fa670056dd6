"""Matrix products `y = W x (+ bias)` of weights that are not packed: `f32`, `f16` and `bf16`.

Each function computes some row tiles (8 rows each) for all tokens of a batch, in f32. Each (row, token) has 8 sums, one
for each lane along the columns, which are added at the end; so results are the same to the last bit for any split of
rows or tokens. `packed.py` multiplies blocks.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.operands import Matrix, Rows, from_token
from quantkit_kernels.simd import (
    fma,
    get_f32,
    load_rows_bf16,
    load_rows_f16,
    load_rows_f32,
    load_rows_partial_bf16,
    load_rows_partial_f16,
    load_rows_partial_f32,
    load_tokens_f32,
    load_tokens_partial_f32,
    put_f32,
    rows_of,
    store_sums,
    tokens_of,
    zeros,
)


def _plain_linear(load, load_partial, size):
    """The product of one kind: `load` widens its numbers, which have `size` bytes."""

    @jit
    def multiply(like, matrix, x, y):
        """The first rows of a matrix, as many as `like` has, times as many tokens; `like` is zero."""
        row_bytes = matrix.columns * size
        weight, source, left = matrix.data, x.address, matrix.columns
        total = like
        while left >= 8:
            total = fma(load(weight, row_bytes, like), load_tokens_f32(source, x.stride, like), total)
            weight += 8 * size
            source += 32
            left -= 8
        if left:
            weights = load_partial(weight, row_bytes, left, like)
            total = fma(weights, load_tokens_partial_f32(source, x.stride, left, like), total)
        store_sums(y.address, 4, y.stride, total)
        if matrix.bias:
            for row in range(rows_of(like)):
                for token in range(tokens_of(like)):
                    place = y.address + 4 * row + token * y.stride
                    put_f32(place, get_f32(place) + get_f32(matrix.bias + 4 * row))

    @jit
    def from_row(matrix, row):
        """The matrix from a row on."""
        bias = matrix.bias + 4 * row if matrix.bias else 0
        return Matrix(matrix.data + row * matrix.columns * size, 0, bias, matrix.rows, matrix.columns)

    @jit
    def linear(matrix, x, y, tokens, first, last):
        """Row tiles `first` to `last` for all tokens; `x` and `y` f32 rows."""
        row = 8 * first
        end = min(8 * last, matrix.rows)
        while row < end:
            many = end - row >= 4
            rows = from_row(matrix, row)
            token = 0
            while token < tokens:
                source, out = from_token(x, token), Rows(y.address + token * y.stride + 4 * row, y.stride)
                if many and tokens - token >= 2:
                    multiply(zeros(4, 2), rows, source, out)
                    token += 2
                elif many:
                    multiply(zeros(4, 1), rows, source, out)
                    token += 1
                else:
                    multiply(zeros(1, 1), rows, source, out)
                    token += 1
            row += 4 if many else 1

    return linear


linear_f32 = _plain_linear(load_rows_f32, load_rows_partial_f32, 4)
linear_f16 = _plain_linear(load_rows_f16, load_rows_partial_f16, 2)
linear_bf16 = _plain_linear(load_rows_bf16, load_rows_partial_bf16, 2)
