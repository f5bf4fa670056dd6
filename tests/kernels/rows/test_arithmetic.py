"""Sums, products, bounds and copies against numpy: any number of columns, in place, with padding that holds NaN."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.rows import arithmetic


@jit(entry=True)
def add(a, b, out, n):
    arithmetic.add(a, b, out, n)


@jit(entry=True)
def scale(x, factor, out, n):
    arithmetic.scale(x, factor, out, n)


@jit(entry=True)
def multiply(a, b, out, n):
    arithmetic.multiply(a, b, out, n)


@jit(entry=True)
def clamp(x, limit, out, n):
    arithmetic.clamp(x, limit, out, n)


@jit(entry=True)
def softcap(x, limit, out, n):
    arithmetic.softcap(x, limit, out, n)


@jit(entry=True)
def scale_by_position(x, position, period, beta, out, n):
    arithmetic.scale_by_position(x, position, period, beta, out, n)


@jit(entry=True)
def copy(x, out, n):
    arithmetic.copy(x, out, n)


@jit(entry=True)
def copy_columns(x, begin, end, out):
    arithmetic.copy_columns(x, begin, end, out)


@jit(entry=True)
def append(a, b, out, parts, size, columns):
    arithmetic.append(a, b, out, parts, size, columns)


@jit(entry=True)
def scale_parts(x, factors, size, out, n):
    arithmetic.scale_parts(x, factors, size, out, n)


@pytest.mark.parametrize(("parts", "size"), [(1, 53), (3, 16), (5, 7), (4, 1), (2, 33)])
def test_parts_have_factors_of_their_own(parts: int, size: int) -> None:
    rng = np.random.default_rng(size)
    values, factors = (
        rng.standard_normal(parts * size).astype(np.float32),
        rng.standard_normal(parts).astype(np.float32),
    )
    x = row(values)
    scale_parts(address(x), address(factors), size, address(x), values.size)
    assert np.array_equal(result(x, values.size), values * np.repeat(factors, size))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 75), st.booleans(), st.integers(0, 2**32 - 1))
def test_exact_ones(n: int, in_place: bool, seed: int) -> None:
    a, b = np.random.default_rng(seed).standard_normal((2, n)).astype(np.float32)
    second = row(b)
    for kernel, arguments, expected in (
        (add, (address(second),), a + b),
        (multiply, (address(second),), a * b),
        (clamp, (np.float32(0.7),), np.clip(a, -np.float32(0.7), np.float32(0.7))),
        (scale, (np.float32(1.7),), a * np.float32(1.7)),
        (copy, (), a),
    ):
        x = row(a)
        out = x if in_place else row(np.zeros(n))
        kernel(address(x), *arguments, address(out), n)
        np.testing.assert_array_equal(result(out, n), expected)


@pytest.mark.parametrize("limit", [30.0, 0.5])
@pytest.mark.parametrize("n", [1, 16, 53])
def test_softcap(limit: float, n: int) -> None:
    values = (limit * 4 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)
    x = row(values)
    softcap(address(x), np.float32(limit), address(x), n)
    exact = truth.softcap(values.astype(np.float64), limit=limit)
    np.testing.assert_allclose(result(x, n), exact, rtol=6e-7)


def test_bounds_of_nan_and_infinity() -> None:
    values = [np.nan, np.inf, -np.inf]
    for kernel in (clamp, softcap):
        x = row(values)
        kernel(address(x), np.float32(2.0), address(x), 3)
        np.testing.assert_array_equal(result(x, 3), np.array([np.nan, 2, -2], np.float32))


@pytest.mark.parametrize("position", [0, 1, 16383, 16384, 250_000])
def test_scale_by_position(position: int) -> None:
    values = np.random.default_rng(position).standard_normal(19).astype(np.float32)
    x = row(values)
    scale_by_position(address(x), position, 16384, np.float32(0.1), address(x), 19)
    factor = 1 + 0.1 * np.log(1 + np.floor(position / 16384))
    np.testing.assert_allclose(result(x, 19), factor * values, rtol=2e-7)


@pytest.mark.parametrize("begin", [0, 1, 16, 37])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 38])
def test_copy_columns_to_the_very_end_of_memory(begin: int, count: int) -> None:
    values = np.random.default_rng(count).standard_normal(begin + count).astype(np.float32)
    out = row(np.zeros(count))
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page) as memory:
        protected = np.frombuffer(memory, np.float32)
        start = page // 4 - len(values)
        protected[start : start + len(values)] = values
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(protected.ctypes.data + page), page, 0)
        copy_columns(protected.ctypes.data + 4 * start, begin, begin + count, address(out))
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(protected.ctypes.data + page), page, 3)
        del protected
    np.testing.assert_array_equal(result(out, count), values[begin:])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_append(parts: int, size: int, columns: int) -> None:
    rng = np.random.default_rng(size)
    a, b = rng.integers(-9, 9, (1, parts * size)).astype(float), rng.integers(-9, 9, (1, columns)).astype(float)
    expected = truth.append(a, b, parts=parts, size=size)
    parted, other, out = row(a), row(b), row(np.zeros(expected.size))
    append(address(parted), address(other), address(out), parts, size, columns)
    np.testing.assert_array_equal(result(out, expected.size), expected[0])
