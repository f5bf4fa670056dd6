"""Norms against float64: any number of columns, with and without weights, in place, with padding that holds NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import address, result, row
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.rows import norms

EPS = float(np.float32(1e-5))


@jit(entry=True)
def rms_norm(x, out, n, weight, weight_columns, size, eps, offset):
    norms.rms_norm(x, out, n, norms.Norm(weight, 0, weight_columns, size, eps, offset))


@jit(entry=True)
def layer_norm(x, out, n, weight, bias, weight_columns, size, eps, offset):
    norms.layer_norm(x, out, n, norms.Norm(weight, bias, weight_columns, size, eps, offset))


@jit(entry=True)
def match_rms(x, target, out, n):
    norms.match_rms(x, target, out, n)


@jit(entry=True)
def sparsify(x, out, n, factor):
    norms.sparsify(x, out, n, factor)


WEIGHTS = ("none", "one for every part", "all columns")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.booleans(),
    st.sampled_from([1e-12, 1.0, 1e12]), st.sampled_from(WEIGHTS), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_rms_norm(
    size: int, pieces: int, offset: float, in_place: bool, magnitude: float, weights: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((1, pieces * size)) * magnitude).astype(np.float32)
    columns = {"none": 0, "one for every part": size, "all columns": x.size}[weights]
    weight = rng.standard_normal(columns).astype(np.float32)
    a, w = row(x), row(weight)
    out = a if in_place else row(np.zeros(x.size))
    rms_norm(
        address(a), address(out), x.size, address(w) if columns else 0, columns, size, np.float32(EPS),
        np.float32(offset),
    )  # fmt: skip
    exact = truth.rms_norm(
        x.astype(np.float64), weight.astype(np.float64) if columns else None,
        size=size, weight_columns=columns, eps=EPS, offset=offset,
    )  # fmt: skip
    np.testing.assert_allclose(result(out, x.size), exact[0], rtol=2e-6, atol=1e-6 * np.abs(exact).max())


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.booleans(), st.booleans(),
    st.sampled_from([0.0, 3.0, -40.0]), st.sampled_from(WEIGHTS), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_layer_norm(
    size: int, pieces: int, offset: float, in_place: bool, biased: bool, mean: float, weights: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((1, pieces * size)) + mean).astype(np.float32)
    columns = {"none": 0, "one for every part": size, "all columns": x.size}[weights]
    affine = [rng.standard_normal(columns).astype(np.float32) for _ in range(bool(columns) * (1 + biased))]
    rows = [row(values) for values in affine]
    addresses = [address(values) for values in rows] + [0] * (2 - len(rows))
    a = row(x)
    out = a if in_place else row(np.zeros(x.size))
    layer_norm(address(a), address(out), x.size, *addresses, columns, size, np.float32(EPS), np.float32(offset))
    exact = truth.layer_norm(
        x.astype(np.float64), *(values.astype(np.float64) for values in affine),
        size=size, weight_columns=columns, eps=EPS, offset=offset,
    )  # fmt: skip
    # The mean is rounded, and counts as much as the spread is small.
    spread = 1 / np.sqrt(x.reshape(pieces, size).astype(np.float64).var(axis=1) + EPS)
    error = 4e-7 * (1 + abs(mean)) * spread.max() * (1 + max((np.abs(v).max() for v in affine), default=1))
    np.testing.assert_allclose(result(out, x.size), exact[0], rtol=2e-6, atol=error)


@pytest.mark.parametrize("columns", [40, 5])
def test_what_is_all_equal_is_normalized_to_the_bias(columns: int) -> None:
    x, w, b = row(np.full(columns, 7.0)), row(np.ones(columns)), row(np.arange(columns))
    layer_norm(
        address(x), address(x), columns, address(w), address(b), columns, columns, np.float32(1e-6), np.float32(0)
    )
    np.testing.assert_array_equal(result(x, columns), np.arange(columns))


def test_rms_norm_of_zeros_is_zero() -> None:
    x, w = row(np.zeros(40)), row(np.ones(40))
    rms_norm(address(x), address(x), 40, address(w), 40, 40, np.float32(1e-6), np.float32(0))
    assert (result(x, 40) == 0).all()


@pytest.mark.parametrize("columns", [1, 16, 53, 200])
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e6])
def test_match_rms(columns: int, magnitude: float) -> None:
    x, target = np.random.default_rng(columns).standard_normal((2, columns)).astype(np.float32)
    x *= np.float32(magnitude)
    a, b = row(x), row(target)
    match_rms(address(a), address(b), address(a), columns)
    exact = truth.match_rms(x[np.newaxis].astype(np.float64), target[np.newaxis].astype(np.float64))
    np.testing.assert_allclose(result(a, columns), exact[0], rtol=1e-6)


def test_match_rms_of_zeros_is_zeros() -> None:
    a, b = row(np.zeros(5)), row(np.ones(5))
    match_rms(address(a), address(b), address(a), 5)
    assert not result(a, 5).any()


@pytest.mark.parametrize("columns", [1, 16, 53, 200])
@pytest.mark.parametrize("factor", [-0.3, 0.0, 1.6448536])
def test_sparsify(columns: int, factor: float) -> None:
    x = (np.random.default_rng(columns).standard_normal(columns) + 3).astype(np.float32)
    a = row(x)
    sparsify(address(a), address(a), columns, np.float32(factor))
    exact = truth.sparsify(x[np.newaxis].astype(np.float64), factor=float(np.float32(factor)))
    np.testing.assert_allclose(result(a, columns), exact[0], atol=2e-6)
