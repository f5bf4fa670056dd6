"""Weights that were quantized before keep their codes, or a search found better ones; rounding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quantkit.quantization.encode
from quantkit.quantization.encode import Encoded, encode, stripes
from quantkit.quantization.kept_codes import CODE_BITS
from quantkit.tensor import GroupScales
from quantkit_kernels import blocks

Floats = NDArray[np.float32]


def quantized(rows: int, columns: int, bits: int = 4, seed: int = 0) -> tuple[Floats, GroupScales]:
    """Numbers of codes of some bits, with scales and whole zeros of each group, and these."""
    random = np.random.default_rng(seed)
    groups = blocks.grid(rows, columns)[1]
    scales = random.uniform(0.3, 1, (rows, groups)).astype(np.float16).astype(np.float32)
    mins = np.float32(-(1 << bits - 1)) * scales
    codes = random.integers(1, 1 << bits, (rows, columns))
    of_column = np.arange(columns) // 32
    return (codes * scales[:, of_column] + mins[:, of_column]).astype(np.float32), GroupScales(scales, mins, bits)


def encoded(weights: Floats, kind: str, scales: GroupScales | None = None, *, search: bool = True) -> Encoded:
    return encode(weights, "f32", (kind,), scales=scales, search=search)[kind]


def numbers(kind: str, found: Encoded, shape: tuple[int, ...]) -> Floats:
    return blocks.dequantize(kind, found.data, found.row_scales, shape)


@pytest.mark.parametrize("kind", CODE_BITS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 140),
    spoiled=st.sets(st.integers(0, 19)),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_never_errs_more_than_a_search(kind: str, rows: int, columns: int, spoiled: set[int], seed: int) -> None:
    weights, scales = quantized(rows, columns, CODE_BITS[kind], seed)
    for row in spoiled & set(range(rows)):  # of which the scales say nothing
        weights[row] = np.random.default_rng(seed).standard_normal(columns)
    found, searched = encoded(weights, kind, scales), encoded(weights, kind)
    assert found.error <= max(searched.error, 1e-4 * found.squares)
    assert searched.kept is None
    assert found.kept is not None
    assert 0 <= found.kept <= blocks.grid(rows, columns)[0]
    error = np.square(numbers(kind, found, weights.shape).astype(np.float64) - weights).sum()
    assert found.error == pytest.approx(error, rel=1e-2, abs=1e-11 * found.squares)


@pytest.mark.parametrize("kind", CODE_BITS)
def test_each_tile_is_decided_by_itself(kind: str) -> None:
    weights, scales = quantized(40, 96, CODE_BITS[kind])
    random = np.random.default_rng(1).standard_normal((16, 96)).astype(np.float32)
    weights[8:24] = random
    found = encoded(weights, kind, scales)
    assert found.kept == 3
    searched = encoded(random, kind)
    assert found.data[1:3].tobytes() == searched.data.tobytes()
    assert found.row_scales is not None
    assert searched.row_scales is not None
    assert found.row_scales[1:3].tobytes() == searched.row_scales.tobytes()


@pytest.mark.parametrize("kind", CODE_BITS)
def test_stripes_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    weights, scales = quantized(75, 40, CODE_BITS[kind])
    weights[30:40] *= np.float32(1.01)
    whole = encoded(weights, kind, scales)
    monkeypatch.setattr(quantkit.quantization.encode, "STRIPE_WEIGHTS", 16 * 40)

    def parts() -> Iterator[Encoded]:
        for rows in stripes(weights.shape):
            yield encoded(weights[rows], kind, scales.viewed(lambda it, rows=rows: it[rows]))  # type: ignore[misc]

    found = list(parts())
    assert len(found) == 5
    assert b"".join(part.data.tobytes() for part in found) == whole.data.tobytes()
    assert sum(part.kept or 0 for part in found) == whole.kept


@pytest.mark.parametrize(("kind", "bits"), [("int4", 5), ("int4", 8), ("int5", 6), ("int5", 8), ("int6", 8)])
def test_codes_that_are_too_wide_are_not_tried(kind: str, bits: int) -> None:
    weights, scales = quantized(8, 64, bits)
    found = encoded(weights, kind, scales)
    assert found.kept is None
    assert found.data.tobytes() == encoded(weights, kind).data.tobytes()


@pytest.mark.parametrize("bits", [3, 4])  # of 3 bits the search finds some too
def test_codes_of_fewer_bits_stay_beside_mins(bits: int) -> None:
    weights, scales = quantized(16, 256, bits)
    found = encoded(weights, "int5", scales)
    assert found.kept == 2
    assert found.error < encoded(weights, "int5").error / 2
    codes = blocks.unpack("int5", found.data)[0]
    expected = np.rint((weights - np.repeat(scales.mins, 32, axis=1)) / np.repeat(scales.scales, 32, axis=1))
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("bits", [3, 4, 5])  # those of two bits the search may find too
def test_codes_of_fewer_bits_stay_in_wider_blocks(bits: int) -> None:
    """Whole zeros make them symmetric codes."""
    weights, scales = quantized(16, 256, bits)
    found = encoded(weights, "int8", scales)
    assert found.kept == 2
    assert found.error < encoded(weights, "int8").error / 3
    codes = blocks.unpack("int8", found.data)[0]
    np.testing.assert_array_equal(codes, np.rint(weights / np.repeat(scales.scales, 32, axis=1)))


def test_scales_that_are_not_finite_are_of_no_use() -> None:
    weights, scales = quantized(8, 64)
    bad = GroupScales(scales.scales * np.float32(np.inf), scales.mins, 4)
    found = encoded(weights, "int4", bad)
    assert found.kept == 0
    assert found.data.tobytes() == encoded(weights, "int4").data.tobytes()


def ranges(weights: Floats, largest_code: int, *, with_mins: bool) -> NDArray[np.float64]:
    """What rounding in the range of each group makes of weights, with scales and mins that are not rounded."""
    found = weights.astype(np.float64)
    for row in found:
        for first in range(0, len(row), 32):
            group = row[first : first + 32]
            low = group.min() if with_mins else 0.0
            scale = ((group.max() - low) if with_mins else np.abs(group).max()) / largest_code
            group[:] = low + scale * np.rint((group - low) / (scale or 1.0))
    return found


@pytest.mark.parametrize("kind", CODE_BITS)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 140), shift=st.integers(-3, 3), seed=st.integers(0, 2**32 - 1))
def test_rounding_errs_as_the_ranges_of_groups_do(kind: str, rows: int, columns: int, shift: int, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) + np.float32(shift)
    found = encoded(weights, kind, search=False)
    plain = ranges(weights, blocks.KINDS[kind].largest_code, with_mins=kind in blocks.WITH_MINS)
    error, least = np.square(numbers(kind, found, weights.shape) - weights).sum(), np.square(plain - weights).sum()
    assert found.error == pytest.approx(error, rel=1e-2, abs=1e-11 * found.squares)
    # Scales and mins are rounded to 8 bits of the largest of the row.
    assert error <= 1.5 * least + 4e-5 * found.squares
    assert found.kept is None


@pytest.mark.parametrize("kind", CODE_BITS)
def test_rounding_loses_more_than_a_search_and_keeps_what_can_be_kept(kind: str) -> None:
    weights = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    searched, rounded = encoded(weights, kind), encoded(weights, kind, search=False)
    assert 1.03 * searched.error < rounded.error < 1.4 * searched.error
    exact, scales = quantized(16, 96, CODE_BITS[kind])
    assert encoded(exact, kind, scales, search=False).data.tobytes() == encoded(exact, kind, scales).data.tobytes()


@pytest.mark.parametrize("kind", CODE_BITS)
def test_rounding_of_extremes(kind: str) -> None:
    for value in (0.0, 3.0, -2e38):
        weights = np.full((9, 40), value, np.float32)
        found = encoded(weights, kind, search=False)
        assert numbers(kind, found, weights.shape) == pytest.approx(weights, rel=1e-5)
