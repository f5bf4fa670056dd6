"""What kernels of more than one room take: rows of tokens and matrices, as addresses of checked memory.

These tuples bundle numbers that belong together. Compiled code passes their fields in registers, so they cost nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.compile.jit import jit


class Rows(NamedTuple):
    """One row for each token of a batch."""

    address: int
    stride: int
    """Bytes from one token's row to the next."""


class Matrix(NamedTuple):
    """A weight `[rows, columns]` of any kind, and its bias."""

    data: int
    row_scales: int
    """f32, as `blocks.py` lays them out; 0 for plain numbers."""
    bias: int
    """f32, padded to whole row tiles; 0 for none."""
    rows: int
    columns: int


@jit
def from_token(rows, token):
    """The rows from that token on."""
    return Rows(rows.address + token * rows.stride, rows.stride)
