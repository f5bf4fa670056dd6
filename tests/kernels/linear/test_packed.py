"""Products of packed weights against the block specification, and against themselves: the same bits for any split."""

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
from quantkit_kernels.linear import activations
from quantkit_kernels.linear.packed import linear_int4, linear_int5, linear_int6, linear_int8
from quantkit_kernels.operands import Matrix, Rows

Share = tuple[int, int | None]
"""First row tile, and the one behind the last; None for that of the matrix."""

TOLERANCE = 2e-5
"""Of f32 sums over a few hundred columns, relative to the sum of magnitudes."""


@jit(entry=True)
def quantize_all(x, x_stride, columns, tokens, packed, packed_stride):
    for token in range(tokens):
        activations.quantize(x + token * x_stride, columns, packed + token * packed_stride)


@jit(entry=True)
def multiply_int4(matrix, x, y, tokens, first, last):
    linear_int4(matrix, x, y, tokens, first, last)


@jit(entry=True)
def multiply_int5(matrix, x, y, tokens, first, last):
    linear_int5(matrix, x, y, tokens, first, last)


@jit(entry=True)
def multiply_int6(matrix, x, y, tokens, first, last):
    linear_int6(matrix, x, y, tokens, first, last)


@jit(entry=True)
def multiply_int8(matrix, x, y, tokens, first, last):
    linear_int8(matrix, x, y, tokens, first, last)


MULTIPLY = {"int4": multiply_int4, "int5": multiply_int5, "int6": multiply_int6, "int8": multiply_int8}


def quantized(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """int8 activations -> (packed records, the values that they stand for)."""
    tokens, columns = x.shape
    packed = np.full((tokens, activations.packed_bytes(columns)), 0xAA, np.uint8)
    quantize_all(address(x), x.strides[0], columns, tokens, address(packed), packed.strides[0])
    padded = np.zeros((tokens, -(-columns // 32) * 32))
    padded[:, :columns] = x
    groups = padded.reshape(tokens, -1, 32)
    peak = np.abs(groups).max(-1, keepdims=True).astype(np.float32)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    codes = np.rint(groups.astype(np.float32) * inverse)
    return packed, (codes * (peak / np.float32(127))).reshape(tokens, -1)[:, :columns]


def product(
    kind: str,
    data: NDArray[Any],
    row_scales: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    shape: tuple[int, int],
    x: NDArray[np.float32],
    shares: Sequence[Share] = ((0, None),),
) -> NDArray[np.float32]:
    """x f32 [tokens, columns] times a weight of a shape, computed in shares of row tiles; writes no other rows."""
    packed, tiles = quantized(x)[0], -(-shape[0] // 8)
    around = np.full((len(x) + 2, 8 * tiles), 12345, np.float32)
    y = around[1:-1]
    y[:] = np.nan
    matrix = Matrix(address(data), address(row_scales), address(bias), *shape)
    for first, last in shares:
        source, out = Rows(address(packed), packed.strides[0]), Rows(address(y), y.strides[0])
        MULTIPLY[kind](matrix, source, out, len(x), first, tiles if last is None else last)
    assert (around[[0, -1]] == 12345).all(), "wrote past the tokens"
    return y[:, : shape[0]]


@pytest.mark.parametrize("kind", MULTIPLY)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 120),
    columns=st.integers(1, 200),
    tokens=st.integers(1, 21),
    with_bias=st.booleans(),
    extreme=st.booleans(),
    exponent=st.sampled_from([-18, 0, 15]),
    seed=st.integers(0, 2**32 - 1),
)
def test_product_is_the_specified_one(
    kind: str, rows: int, columns: int, tokens: int, with_bias: bool, extreme: bool, exponent: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data, row_scales = random_weight(kind, rows, columns, rng, extreme=extreme)
    value = blocks.dequantize(kind, data, row_scales, (rows, columns)).astype(np.float64)
    x = (rng.standard_normal((tokens, columns)) * 10.0**exponent).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    bias = None
    if with_bias:
        bias = np.zeros(-(-rows // 16) * 16, np.float32)
        bias[:rows] = rng.standard_normal(rows)
    y = product(kind, data, row_scales, bias, (rows, columns), x)
    taken = quantized(x)[1]
    expected = taken @ value.T + (0 if bias is None else bias[:rows])
    magnitude = np.abs(taken) @ np.abs(value).T + (0 if bias is None else np.abs(bias[:rows])) + 1e-30
    if kind in blocks.WITH_MINS:  # codes and mins nearly cancel: errors are relative to what cancels
        assert row_scales is not None
        _, scales, mins = blocks.unpack(kind, data)
        assert mins is not None
        terms = (
            scales[:rows].astype(float) * blocks.KINDS[kind].largest_code * row_scales[:, 0].reshape(-1)[:rows, None]
        )
        terms += np.abs(mins[:rows].astype(float)) * row_scales[:, 1].reshape(-1)[:rows, None]
        magnitude = np.abs(taken) @ np.repeat(terms, 32, axis=1)[:, :columns].T + magnitude
    assert np.all(np.abs(y - expected) <= TOLERANCE * magnitude)


@pytest.mark.parametrize("kind", MULTIPLY)
def test_same_bits_for_any_split_of_rows_and_tokens(kind: str) -> None:
    rng = np.random.default_rng(7)
    rows, columns, tokens = 109, 165, 23  # 14 row tiles: those of whole grids, and more
    data, row_scales = random_weight(kind, rows, columns, rng)
    bias = rng.standard_normal(112).astype(np.float32)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    whole = product(kind, data, row_scales, bias, (rows, columns), x)
    shared = product(kind, data, row_scales, bias, (rows, columns), x, ((5, None), (0, 1), (1, 5)))
    assert whole.tobytes() == shared.tobytes()
    for size in (*range(1, 10), 12, 13):
        parts = [
            product(kind, data, row_scales, bias, (rows, columns), x[start : start + size])
            for start in range(0, tokens, size)
        ]
        assert whole.tobytes() == np.concatenate(parts).tobytes(), f"{size} tokens at once"


@pytest.mark.parametrize("kind", ["int5", "int6"])
@pytest.mark.parametrize("tokens", [1, 2, 4, 9])
def test_dots_past_the_whole_numbers_of_f32_are_rounded_once(tokens: int, kind: str) -> None:
    rng = np.random.default_rng(tokens)
    largest = blocks.KINDS[kind].largest_code
    codes = rng.integers(largest - 7, largest + 1, (32, 32)).astype(np.uint8)
    data = blocks.pack(kind, codes, np.full((32, 1), 255, np.uint8), np.zeros((32, 1), np.int8))
    x = np.float32(127) * rng.choice([-1, 1], (tokens, 1)).astype(np.float32).repeat(32, 1)
    y = product(kind, data, np.ones((4, 2, 8), np.float32), None, codes.shape, x)
    exact = x.astype(np.int64) @ codes.T.astype(np.int64) * 255
    assert (np.abs(exact) > 1 << 24).all()
    assert np.array_equal(y, exact.astype(np.float32))


def test_activations_of_a_zero_row_are_zero() -> None:
    packed, value = quantized(np.zeros((3, 40), np.float32))
    assert not packed.any()
    assert not value.any()
