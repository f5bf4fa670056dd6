"""Products of a mixture of experts: each expert's weights with the rows that were assigned to it.

Pieces are (chosen expert, row tile) pairs, expert after expert, so a thread reads an expert's weights from end to end,
once, whatever the number of its rows; experts that no token chose are not read. `rows/routing.py` assigns rows,
`product.py` multiplies; a weight here is a table of `EXPERT_FIELDS` i64 for each expert.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear import product
from quantkit_kernels.operands import Matrix, Rows
from quantkit_kernels.rows.routing import begins_of
from quantkit_kernels.simd import get_i32, get_i64

EXPERT_FIELDS = 4
"""Addresses of the weight, of its row scales, of its bias, and of the product of its kind."""


@jit
def expert_tiles(weights, table, experts, shape, x, y, first, last):
    """Pieces `first` to `last`; `shape` is a `Matrix` without addresses, `x` and `y` are sorted by expert."""
    tiles = (shape.rows + 7) >> 3
    while first < last:
        expert = get_i32(table + 4 + 4 * (first // tiles))
        tile = first % tiles
        end = min(tiles, tile + last - first)
        begins = begins_of(table, experts) + 4 * expert
        row, rows = get_i32(begins), get_i32(begins + 4) - get_i32(begins)
        fields = weights + 8 * EXPERT_FIELDS * expert
        matrix = Matrix(get_i64(fields), get_i64(fields + 8), get_i64(fields + 16), shape.rows, shape.columns)
        source, target = Rows(x.address + row * x.stride, x.stride), Rows(y.address + row * y.stride, y.stride)
        product.multiply(get_i64(fields + 24), matrix, source, target, rows, tile, end)
        first += end - tile
