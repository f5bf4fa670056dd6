"""Products of plain weights against float64, and against themselves: the same bits for any split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from arrays import address, random_weight
from quantkit_kernels import blocks
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear.plain import linear_bf16, linear_f16, linear_f32
from quantkit_kernels.operands import Matrix, Rows

Share = tuple[int, int | None]
"""First row tile, and the one behind the last; None for that of the matrix."""

TOLERANCE = 2e-5
"""Of f32 sums over a few hundred columns, relative to the sum of magnitudes."""


@jit(entry=True)
def multiply_f32(matrix, x, y, tokens, first, last):
    linear_f32(matrix, x, y, tokens, first, last)


@jit(entry=True)
def multiply_f16(matrix, x, y, tokens, first, last):
    linear_f16(matrix, x, y, tokens, first, last)


@jit(entry=True)
def multiply_bf16(matrix, x, y, tokens, first, last):
    linear_bf16(matrix, x, y, tokens, first, last)


MULTIPLY = {"f32": multiply_f32, "f16": multiply_f16, "bf16": multiply_bf16}


def product(
    kind: str,
    data: NDArray[Any],
    bias: NDArray[np.float32] | None,
    shape: tuple[int, int],
    x: NDArray[np.float32],
    shares: Sequence[Share] = ((0, None),),
) -> NDArray[np.float32]:
    """x f32 [tokens, columns] times a weight of a shape, computed in shares of row tiles."""
    tiles = -(-shape[0] // 8)
    y = np.full((len(x), 8 * tiles), np.nan, np.float32)
    matrix = Matrix(address(data), 0, address(bias), *shape)
    for first, last in shares:
        source, out = Rows(address(x), x.strides[0]), Rows(address(y), y.strides[0])
        MULTIPLY[kind](matrix, source, out, len(x), first, tiles if last is None else last)
    return y[:, : shape[0]]


@pytest.mark.parametrize("kind", MULTIPLY)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 120),
    columns=st.integers(1, 200),
    tokens=st.integers(1, 21),
    with_bias=st.booleans(),
    exponent=st.sampled_from([-18, 0, 15]),
    seed=st.integers(0, 2**32 - 1),
)
def test_product_is_exact_to_f32(
    kind: str, rows: int, columns: int, tokens: int, with_bias: bool, exponent: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data, _ = random_weight(kind, rows, columns, rng)
    value = blocks.dequantize(kind, data, None, (rows, columns)).astype(np.float64)
    x = (rng.standard_normal((tokens, columns)) * 10.0**exponent).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    bias = rng.standard_normal(-(-rows // 16) * 16).astype(np.float32) if with_bias else None
    added = np.zeros(rows, np.float32) if bias is None else bias[:rows]
    expected = x.astype(np.float64) @ value.T + added
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(value).T + np.abs(added) + 1e-30
    assert np.all(np.abs(product(kind, data, bias, (rows, columns), x) - expected) <= TOLERANCE * magnitude)


@pytest.mark.parametrize("kind", MULTIPLY)
def test_same_bits_for_any_split_of_rows_and_tokens(kind: str) -> None:
    rng = np.random.default_rng(7)
    rows, columns, tokens = 109, 165, 23
    data, _ = random_weight(kind, rows, columns, rng)
    bias = rng.standard_normal(112).astype(np.float32)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    whole = product(kind, data, bias, (rows, columns), x)
    shared = product(kind, data, bias, (rows, columns), x, ((5, None), (0, 1), (1, 5)))
    assert whole.tobytes() == shared.tobytes()
    for size in (1, 2, 3, 5, 8, 12):
        parts = [
            product(kind, data, bias, (rows, columns), x[start : start + size]) for start in range(0, tokens, size)
        ]
        assert whole.tobytes() == np.concatenate(parts).tobytes(), f"{size} tokens at once"
