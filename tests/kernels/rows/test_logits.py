"""Sums of exponentials and divergences of rows of logits against numpy in f64: any width, any distance."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit_kernels.rows.logits import BLOCK, kl_divergence, log_sum_exp

ROUNDING = 2e-8
"""Nats by which the f32 exponentials of large vocabularies may be off in sum (measured: 1e-8)."""

Logits = NDArray[np.float32]


def logits(columns: int, seed: int, spread: float = 3.0) -> Logits:
    return (spread * np.random.default_rng(seed).standard_normal(columns)).astype(np.float32)


def exact_log_sum(row: Logits) -> float:
    wide = row.astype(np.float64)
    return float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))


def exact_divergence(p: Logits, q: Logits) -> float:
    log_p, log_q = p.astype(np.float64) - exact_log_sum(p), q.astype(np.float64) - exact_log_sum(q)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def divergence(p: Logits, q: Logits) -> float:
    return kl_divergence(p, q, log_sum_exp(p), log_sum_exp(q))


@settings(max_examples=50, deadline=None)
@given(columns=st.integers(1, 3 * BLOCK), seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 1.0, 30.0]))
def test_any_width(columns: int, seed: int, spread: float) -> None:
    p = logits(columns, seed, spread)
    q = p + logits(columns, seed + 1, 0.5)
    assert log_sum_exp(p) == pytest.approx(exact_log_sum(p), rel=1e-7, abs=1e-7)
    assert divergence(p, q) == pytest.approx(exact_divergence(p, q), rel=1e-5, abs=5e-7)


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01, 0.001])
def test_small_divergences_of_a_large_vocabulary(noise: float) -> None:
    """Noise of 0.001 is a divergence of 5e-7 nats."""
    p = logits(150_001, 0)
    q = p + logits(150_001, 1, noise)
    assert divergence(p, q) == pytest.approx(exact_divergence(p, q), rel=2e-6, abs=ROUNDING)
    assert log_sum_exp(p) == pytest.approx(exact_log_sum(p), abs=ROUNDING)


def test_equal_rows_do_not_diverge() -> None:
    p = logits(49_152, 0)
    assert divergence(p, p.copy()) == 0.0
    assert divergence(p, p + np.float32(4)) == pytest.approx(0, abs=1e-7)


def test_nothing_behind_the_row_is_read() -> None:
    """A row that ends where a page does, before one that is not mapped."""
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    row = np.frombuffer(memory, np.float32)
    row[:] = np.nan
    begin = mmap.PAGESIZE // 4 - 21
    row[begin : begin + 21] = logits(21, 3)
    p = row[begin : begin + 21]
    assert log_sum_exp(p) == pytest.approx(exact_log_sum(p), rel=1e-7)
    assert divergence(p, p) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_what_is_not_finite_shows(value: float, place: int) -> None:
    p = logits(100, 0)
    q = p.copy()
    q[place] = value
    assert np.isnan(log_sum_exp(q))
    assert np.isnan(divergence(p, q))


def test_tokens_without_probability_count_as_such() -> None:
    p = logits(100, 0)
    p[[3, 50]] = -np.inf
    assert log_sum_exp(p) == pytest.approx(exact_log_sum(p), rel=1e-7)
