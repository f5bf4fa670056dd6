"""Matrix products against the block specification, and against themselves: the same bits for any split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit_kernels import blocks
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear import activations, matmul
from quantkit_kernels.linear.matmul import linear_bf16, linear_f16, linear_f32, linear_int4, linear_int8

KINDS = ("int4", "int8", "f16", "bf16", "f32")
PACKED = {"int4": 0, "int8": 1}
FLOATS = {"f16": 2, "bf16": 3, "f32": 4}
TOLERANCE = 2e-5
"""Of f32 sums over a few hundred columns, relative to the sum of magnitudes."""


@jit(entry=True)
def quantize_all(x, x_stride, columns, tokens, packed, packed_stride):
    for token in range(tokens):
        activations.quantize(x + token * x_stride, columns, packed + token * packed_stride)


@jit(entry=True)
def multiply(kind, first, last, weight, row_scales, bias, rows, columns, x, x_stride, tokens, y, y_stride):
    if kind == 0:
        linear_int4(first, last, weight, row_scales, bias, columns, x, x_stride, tokens, y, y_stride)
    elif kind == 1:
        linear_int8(first, last, weight, row_scales, bias, columns, x, x_stride, tokens, y, y_stride)
    elif kind == 2:
        linear_f16(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)
    elif kind == 3:
        linear_bf16(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)
    else:
        linear_f32(first, last, weight, bias, rows, columns, x, x_stride, tokens, y, y_stride)


def random_weight(kind, rows, columns, rng, extreme=False):
    """A valid tensor of a kind -> (data, row scales, its value in float64)."""
    groups = -(-columns // 32)
    tiles = -(-rows // 8)
    scales = rng.integers(0, 256, (rows, groups)).astype(np.uint8)
    if kind == "int4":
        codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        mins = rng.integers(-127, 128, (rows, groups)).astype(np.int8)
        if extreme:
            codes[:], scales[:], mins[:] = 15, 255, -127
        data = blocks.pack_int4(codes, scales, mins)
        row_scales = rng.uniform(1e-4, 1e-3, (tiles, 2, 8)).astype(np.float32)
    elif kind == "int8":
        codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        if extreme:
            codes[:], scales[:] = -127, 255
        data = blocks.pack_int8(codes, scales)
        row_scales = rng.uniform(1e-5, 1e-4, (tiles, 1, 8)).astype(np.float32)
    else:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        row_scales = None
        if kind == "bf16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16)
        else:
            data = values.astype(np.float16 if kind == "f16" else np.float32)
    return data, row_scales, blocks.dequantize(kind, data, row_scales, (rows, columns)).astype(np.float64)


def quantized(x):
    """int8 activations -> (packed records, the values that they stand for)."""
    tokens, columns = x.shape
    packed = np.full((tokens, activations.packed_bytes(columns)), 0xAA, np.uint8)
    quantize_all(x.ctypes.data, x.strides[0], columns, tokens, packed.ctypes.data, packed.strides[0])
    padded = np.zeros((tokens, -(-columns // 32) * 32))
    padded[:, :columns] = x
    groups = padded.reshape(tokens, -1, 32)
    peak = np.abs(groups).max(-1, keepdims=True).astype(np.float32)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    codes = np.rint(groups.astype(np.float32) * inverse)
    return packed, (codes * (peak / np.float32(127))).reshape(tokens, -1)[:, :columns]


def run(kind, data, row_scales, bias, shape, x, pieces=((0, None),)):
    rows, columns = shape
    tokens, tiles = len(x), -(-rows // 8)
    source = quantized(x)[0] if kind in PACKED else x
    y = np.full((tokens, 8 * tiles), np.nan, np.float32)
    for first, last in pieces:
        multiply(
            (PACKED | FLOATS)[kind], first, tiles if last is None else last, data.ctypes.data,
            0 if row_scales is None else row_scales.ctypes.data, 0 if bias is None else bias.ctypes.data,
            rows, columns, source.ctypes.data, source.strides[0], tokens, y.ctypes.data, y.strides[0],
        )  # fmt: skip
    return y[:, :rows]


@pytest.mark.parametrize("kind", KINDS)
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
def test_product_is_the_specified_one(kind, rows, columns, tokens, with_bias, extreme, exponent, seed):
    rng = np.random.default_rng(seed)
    data, row_scales, value = random_weight(kind, rows, columns, rng, extreme)
    x = (rng.standard_normal((tokens, columns)) * 10.0**exponent).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    bias = None
    if with_bias:
        bias = np.zeros(-(-rows // 16) * 16, np.float32)
        bias[:rows] = rng.standard_normal(rows)
    y = run(kind, data, row_scales, bias, (rows, columns), x)
    taken = quantized(x)[1] if kind in PACKED else x.astype(np.float64)
    expected = taken @ value.T + (0 if bias is None else bias[:rows])
    magnitude = np.abs(taken) @ np.abs(value).T + (0 if bias is None else np.abs(bias[:rows])) + 1e-30
    if kind == "int4":  # codes and mins nearly cancel: errors are relative to what cancels
        _, scales, mins = blocks.unpack_int4(data)
        terms = scales[:rows].astype(float) * 15 * row_scales[:, 0].reshape(-1)[:rows, None]
        terms += np.abs(mins[:rows].astype(float)) * row_scales[:, 1].reshape(-1)[:rows, None]
        magnitude = np.abs(taken) @ np.repeat(terms, 32, axis=1)[:, :columns].T + magnitude
    assert np.all(np.abs(y - expected) <= TOLERANCE * magnitude)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_split_of_rows_and_tokens(kind):
    rng = np.random.default_rng(7)
    rows, columns, tokens = 109, 165, 23  # 14 row tiles: those of whole grids, and more
    data, row_scales, _ = random_weight(kind, rows, columns, rng)
    bias = rng.standard_normal(112).astype(np.float32)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    whole = run(kind, data, row_scales, bias, (rows, columns), x)
    in_pieces = run(kind, data, row_scales, bias, (rows, columns), x, ((5, None), (0, 1), (1, 5)))
    assert whole.tobytes() == in_pieces.tobytes()
    for size in (1, 2, 3, 5, 8, 12):
        parts = [
            run(kind, data, row_scales, bias, (rows, columns), x[start : start + size])
            for start in range(0, tokens, size)
        ]
        assert whole.tobytes() == np.concatenate(parts).tobytes(), f"in runs of {size} tokens"


def test_activations_of_a_zero_row_are_zero():
    packed, value = quantized(np.zeros((3, 40), np.float32))
    assert not packed.any()
    assert not value.any()


def test_sizes_are_those_of_the_specification():
    assert blocks.KINDS["int4"].block_bytes == matmul.INT4_BLOCK
    assert blocks.KINDS["int8"].block_bytes == matmul.INT8_BLOCK
