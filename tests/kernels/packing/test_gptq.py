"""Packing under a Hessian: what the textbook rounds to, never worse than without it, the same for any split."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit_kernels import blocks
from quantkit_kernels.packing import gptq, search

Floats = NDArray[np.float64]


def correlated(columns: int, seed: int = 0) -> NDArray[np.float32]:
    """A Hessian of inputs some of which say the same, with large and small columns, padded to whole groups."""
    rng = np.random.default_rng(seed)
    mixed = np.eye(columns) + rng.standard_normal((columns, columns)) / np.sqrt(columns)
    x = rng.standard_normal((3 * columns, columns)) * np.exp(rng.standard_normal(columns)) @ mixed
    hessian = np.zeros((-(-columns // 32) * 32,) * 2, np.float32)
    hessian[:columns, :columns] = x.T @ x
    damping = 0.01 * np.diagonal(hessian)[:columns].mean()
    hessian[np.diag_indices(len(hessian))] += np.where(np.arange(len(hessian)) < columns, damping, 1e-6 * damping)
    return hessian


def lower_of(hessian: NDArray[np.float32]) -> NDArray[np.float32]:
    factor = np.linalg.cholesky(hessian[::-1, ::-1].astype(np.float64))
    return np.ascontiguousarray(factor[::-1, ::-1].T, np.float32)


def weights_of(rows: int, columns: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def packed(
    kind: str, weights: NDArray[np.float32], hessian: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], float, float]:
    """Blocks and row scales of a panel, their cost, and that of all weights."""
    data_shape, scales_shape = blocks.expected_shapes(kind, weights.shape)
    assert scales_shape is not None
    data, row_scales = np.empty(data_shape, np.uint8), np.empty(scales_shape, np.float32)
    search.search_blocks(kind, weights, data, row_scales)
    order = gptq.order_of(hessian)
    ordered = np.ascontiguousarray(hessian[np.ix_(order, order)])
    cost, whole = gptq.pack_panel(kind, weights, ordered, lower_of(ordered), order, data, row_scales)
    return data, row_scales, cost, whole


def cost_of(errors: NDArray[Any], hessian: NDArray[np.float32]) -> float:
    corner = hessian[: errors.shape[1], : errors.shape[1]].astype(np.float64)
    return float(((errors @ corner) * errors).sum())


def textbook(largest_code: int, weights: Floats, hessian: Floats, scales: Floats, mins: Floats) -> Floats:
    """Codes of GPTQ as its paper has it, by the factor of the inverse Hessian; scales and mins are `[rows, groups]`."""
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weights, codes = weights.copy(), np.zeros_like(weights)
    for column in range(weights.shape[1]):
        scale, low = scales[:, column // 32], mins[:, column // 32]
        codes[:, column] = np.clip(np.round((weights[:, column] - low) / scale), 0, largest_code)
        error = (weights[:, column] - codes[:, column] * scale - low) / upper[column, column]
        weights[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return codes


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
def test_rounding_is_that_of_the_textbook(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "DESCENTS", 0)
    weights, hessian = weights_of(32, 160), correlated(160)
    data, row_scales, *_ = packed(kind, weights, hessian)
    codes, scale_bytes, min_bytes = blocks.unpack(kind, data)
    assert min_bytes is not None
    units = row_scales.transpose(1, 0, 2).reshape(2, -1, 1).astype(np.float64)
    order = gptq.order_of(hessian)
    groups = order[::32] // 32
    expected = np.empty_like(weights)
    expected[:, order] = textbook(
        blocks.KINDS[kind].largest_code,
        weights[:, order].astype(np.float64),
        hessian[np.ix_(order, order)].astype(np.float64),
        *(unit * array[:, groups] for unit, array in zip(units, (scale_bytes, min_bytes), strict=True)),
    )
    # f32 may put a weight on the other side of a half, and then others behind it.
    assert (codes == expected).mean() > 0.98


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
@pytest.mark.parametrize(("rows", "columns"), [(32, 96), (5, 40), (24, 33), (1, 32)])
def test_the_cost_is_that_of_what_is_stored(kind: str, rows: int, columns: int) -> None:
    weights, hessian = weights_of(rows, columns), correlated(columns)
    data, row_scales, cost, whole = packed(kind, weights, hessian)
    lost = weights - blocks.dequantize(kind, data, row_scales, weights.shape).astype(np.float64)
    assert cost == pytest.approx(cost_of(lost, hessian), rel=1e-2)
    assert whole == pytest.approx(cost_of(weights.astype(np.float64), hessian), rel=1e-4)


def test_columns_that_cost_most_come_first_within_whole_groups() -> None:
    diagonal = np.concatenate([np.arange(1, 33), np.arange(132, 100, -1), np.full(32, 50)])
    order = gptq.order_of(np.diag(diagonal).astype(np.float32))
    assert order.tolist() == [*range(32, 64), *range(64, 96), *range(31, -1, -1)]


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
def test_each_row_keeps_the_units_that_cost_it_least(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "DESCENTS", 0)
    weights, hessian, margins = weights_of(32, 128), correlated(128), gptq.MARGINS

    def costs() -> Floats:
        data, row_scales, *_ = packed(kind, weights, hessian)
        lost = weights - blocks.dequantize(kind, data, row_scales, weights.shape)
        return np.array([cost_of(row[None], hessian) for row in lost])

    alone = []
    for margin in margins[:3]:
        monkeypatch.setattr(gptq, "MARGINS", (margin,))
        alone.append(costs())
    monkeypatch.setattr(gptq, "MARGINS", margins[:3])
    np.testing.assert_allclose(costs(), np.min(alone, axis=0), rtol=1e-2)
    assert len(set(np.argmin(alone, axis=0))) == 3


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
def test_far_better_than_without_a_hessian(kind: str) -> None:
    weights, hessian = weights_of(32, 256), correlated(256)
    _, _, cost, _ = packed(kind, weights, hessian)
    data, row_scales, *_ = packed(kind, weights, np.eye(256, dtype=np.float32))
    alone = weights - blocks.dequantize(kind, data, row_scales, weights.shape).astype(np.float64)
    assert cost < 0.4 * cost_of(alone, hessian)


SIZES = st.sampled_from([1e-6, 1, 1e6])


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
@given(rows=st.integers(1, 32), columns=st.integers(1, 100), seed=st.integers(0, 99), size=SIZES)
@settings(max_examples=30, deadline=None)
def test_a_descent_never_raises_the_cost(kind: str, rows: int, columns: int, seed: int, size: float) -> None:
    weights, hessian = weights_of(rows, columns, seed) * np.float32(size), correlated(columns, seed)
    with pytest.MonkeyPatch.context() as patch:
        costs = []
        for descents in range(4):
            patch.setattr(gptq, "DESCENTS", descents)
            costs.append(packed(kind, weights, hessian)[2])
    assert all(later <= earlier * 1.0001 for earlier, later in pairwise(costs))


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
def test_no_single_code_of_the_last_group_could_be_better(kind: str) -> None:
    weights, hessian = weights_of(8, 64), correlated(64)
    data, row_scales, *_ = packed(kind, weights, hessian)
    codes, scales, mins = blocks.unpack(kind, data)
    least = cost_of(weights - blocks.dequantize(kind, data, row_scales, weights.shape).astype(np.float64), hessian)
    column = 63  # the last that was moved
    for row in range(8):
        for code in range(blocks.KINDS[kind].largest_code + 1):
            moved = codes.copy()
            moved[row, column] = code
            other = blocks.dequantize(kind, blocks.pack(kind, moved, scales, mins), row_scales, weights.shape)
            assert cost_of(weights - other.astype(np.float64), hessian) >= least * 0.9999


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
def test_rows_do_not_depend_on_their_neighbours(kind: str) -> None:
    weights, hessian = weights_of(32, 64), correlated(64)
    data, row_scales, *_ = packed(kind, weights, hessian)
    for first in (0, 8, 24):
        part, scales, *_ = packed(kind, weights[first : first + 8], hessian)
        assert (part == data[first // 8 : first // 8 + 1]).all()
        assert (scales == row_scales[first // 8 : first // 8 + 1]).all()


@pytest.mark.parametrize("kind", blocks.WITH_MINS)
def test_rows_of_zeros_and_of_one_number(kind: str) -> None:
    weights = np.zeros((3, 64), np.float32)
    weights[1] = 0.5
    weights[2, 5] = 3.0
    data, row_scales, *_ = packed(kind, weights, correlated(64))
    found = blocks.dequantize(kind, data, row_scales, weights.shape)
    assert np.isfinite(found).all()
    assert np.abs(found[0]).max() < 1e-6
    np.testing.assert_allclose(found[1], 0.5, rtol=0.05)
