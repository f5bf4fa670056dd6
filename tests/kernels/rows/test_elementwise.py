"""Row kernels against numpy: any number of columns, in place, with padding that holds NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.models.recorder import ACTIVATIONS
from quantkit_kernels import blocks
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import elementwise

COLUMNS = st.integers(1, 75)


@jit(entry=True)
def add(a, b, out, n):
    elementwise.add(a, b, out, n)


@jit(entry=True)
def scale(x, factor, out, n):
    elementwise.scale(x, factor, out, n)


@jit(entry=True)
def copy(x, out, n):
    elementwise.copy(x, out, n)


@jit(entry=True)
def gated(gate, up, out, n, activation):
    elementwise.gated(gate, up, out, n, activation)


@jit(entry=True)
def rms_norm(x, weight, out, n, size, eps, offset):
    elementwise.rms_norm(x, weight, out, n, size, eps, offset)


@jit(entry=True)
def rotation(position, frequencies, half, factor, out):
    elementwise.rotation(position, frequencies, half, factor, out)


@jit(entry=True)
def rope(x, turns, out, n, head_dim):
    elementwise.rope(x, turns, out, n, head_dim)


@jit(entry=True)
def embed(kind, weight, row_scales, row, columns, out):
    elementwise.embed(kind, weight, row_scales, row, columns, out)


def row(values):
    """A row padded to a multiple of 16 columns with NaN, and 16 more that nobody may touch."""
    values = np.asarray(values, np.float32)
    padded = np.full(-(-values.size // 16) * 16 + 16, np.nan, np.float32)
    padded[: values.size] = values
    padded[-16:] = 12345
    return padded


def address(array):
    return array.ctypes.data


def result(out, n):
    assert (out[-16:] == 12345).all(), "wrote past the padding"
    return out[:n]


@settings(deadline=None, max_examples=30)
@given(COLUMNS, st.booleans(), st.integers(0, 2**32 - 1))
def test_add_scale_copy(n, in_place, seed):
    a, b = np.random.default_rng(seed).standard_normal((2, n)).astype(np.float32)
    for kernel, arguments, expected in (
        (add, (address(second := row(b)),), a + b),
        (scale, (np.float32(1.7),), a * np.float32(1.7)),
        (copy, (), a),
    ):
        x = row(a)
        out = x if in_place else row(np.zeros(n))
        kernel(address(x), *arguments, address(out), n)
        np.testing.assert_array_equal(result(out, n), expected)
    assert second.size


@pytest.mark.parametrize("activation", range(3), ids=ACTIVATIONS)
def test_gated(activation):
    gate, up = np.random.default_rng(activation).standard_normal((2, 53)).astype(np.float32)
    x = gate.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    erf = np.vectorize(math.erf)
    exact = {
        "silu": x / (1 + np.exp(-x)),
        "gelu": x / 2 * (1 + erf(x / np.sqrt(2))),
        "gelu_tanh": x / 2 * (1 + np.tanh(inner)),
    }[ACTIVATIONS[activation]]
    a, b = row(gate), row(up)
    gated(address(a), address(b), address(a), 53, activation)
    np.testing.assert_allclose(result(a, 53), exact * up, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.booleans(),
    st.sampled_from([1e-12, 1.0, 1e12]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_rms_norm(size, runs, offset, in_place, magnitude, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((runs, size)) * magnitude).astype(np.float32)
    weight = rng.standard_normal(size).astype(np.float32)
    eps = np.float32(1e-5)
    a, w = row(x.ravel()), row(weight)
    out = a if in_place else row(np.zeros(x.size))
    rms_norm(address(a), address(w), address(out), x.size, size, eps, np.float32(offset))
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + eps) * (weight.astype(np.float64) + offset)
    np.testing.assert_allclose(result(out, x.size), exact.ravel(), rtol=2e-6, atol=1e-6 * np.abs(exact).max())


def test_rms_norm_of_zeros_is_zero():
    x, w = row(np.zeros(40)), row(np.ones(40))
    rms_norm(address(x), address(w), address(x), 40, 40, np.float32(1e-6), np.float32(0))
    assert (result(x, 40) == 0).all()


@pytest.mark.parametrize("half", [1, 3, 8, 13, 32])
@pytest.mark.parametrize("position", [0, 1, 100_000])
def test_rotation(half, position):
    frequencies = (10_000.0 ** (-np.arange(half) / half)).astype(np.float32)
    out = row(np.zeros(2 * half))
    rotation(position, address(frequencies), half, np.float32(1.25), address(out))
    angles = (np.float32(position) * frequencies).astype(np.float64)
    exact = 1.25 * np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(result(out, 2 * half), exact, rtol=0, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_rope(half, heads, in_place, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((heads, 2, half)).astype(np.float32)
    cosine, sine = rng.standard_normal((2, half)).astype(np.float32)
    a, turns = row(x.ravel()), row(np.concatenate([cosine, sine]))
    out = a if in_place else row(np.zeros(x.size))
    rope(address(a), address(turns), address(out), x.size, 2 * half)
    low, high = x[:, 0], x[:, 1]
    expected = np.stack([low * cosine - high * sine, high * cosine + low * sine], 1)
    np.testing.assert_array_equal(result(out, x.size), expected.ravel())


def table(kind, rows, columns, rng):
    """An embedding of a kind -> (data, row scales)."""
    tiles, groups = blocks.grid(rows, columns)
    scales = rng.integers(0, 256, (rows, groups)).astype(np.uint8)
    if kind == "int4":
        codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        mins = rng.integers(-127, 128, (rows, groups)).astype(np.int8)
        return blocks.pack_int4(codes, scales, mins), rng.uniform(1e-4, 1e-3, (tiles, 2, 8)).astype(np.float32)
    if kind == "int8":
        codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        return blocks.pack_int8(codes, scales), rng.uniform(1e-5, 1e-4, (tiles, 1, 8)).astype(np.float32)
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    if kind == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16), None
    return values.astype(np.float16 if kind == "f16" else np.float32), None


@pytest.mark.parametrize("kind", blocks.KINDS)
@pytest.mark.parametrize("columns", [1, 6, 8, 31, 32, 77])
def test_embed_is_what_the_block_specification_says(kind, columns):
    rows = 19
    data, row_scales = table(kind, rows, columns, np.random.default_rng(columns))
    expected = blocks.dequantize(kind, data, row_scales, (rows, columns))
    for number in range(rows):
        out = row(np.zeros(columns))
        scales = 0 if row_scales is None else address(row_scales)
        embed(blocks.KINDS[kind].code, address(data), scales, number, columns, address(out))
        np.testing.assert_allclose(result(out, columns), expected[number], rtol=3e-7, atol=3e-8)


def test_codes_are_those_of_the_tables():
    assert {name: getattr(elementwise, name.upper()) for name in blocks.KINDS} == {
        name: kind.code for name, kind in blocks.KINDS.items()
    }
    assert [getattr(elementwise, name.upper()) for name in ACTIVATIONS] == [0, 1, 2]
