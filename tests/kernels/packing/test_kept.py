"""Scales and mins of a source: its codes stay, where they fit no error is made, anywhere else little is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit_kernels import blocks
from quantkit_kernels.packing.kept import keep_codes
from quantkit_kernels.packing.search import search_blocks

LARGEST_ERROR = {"int4": 1e-4, "int5": 1e-4, "int6": 1e-4, "int8": 1e-5}
"""Relative squared errors of scales that are of one magnitude (measured: 1.9e-5 and 2.9e-6)."""


class Packed(NamedTuple):
    """What was written, and what of it comes out again."""

    data: NDArray[np.uint8]
    row_scales: NDArray[np.float32]
    errors: NDArray[np.float64]
    codes: NDArray[Any]
    numbers: NDArray[np.float32]


class Source(NamedTuple):
    """Codes `[rows, columns]`, scales and mins `[rows, groups]`."""

    codes: NDArray[np.int64]
    scales: NDArray[np.float32]
    mins: NDArray[np.float32]

    @property
    def numbers(self) -> NDArray[np.float32]:
        groups = np.arange(self.codes.shape[1]) // 32
        return (self.codes * self.scales[:, groups] + self.mins[:, groups]).astype(np.float32)


def source(kind: str, rows: int, columns: int, seed: int = 0, *, symmetric: bool = True) -> Source:
    random = np.random.default_rng(seed)
    groups = blocks.grid(rows, columns)[1]
    scales = random.uniform(0.4, 1, (rows, groups)).astype(np.float16).astype(np.float32)
    if kind == "int8":
        return Source(random.integers(-127, 128, (rows, columns)), scales, 0 * scales)
    codes = blocks.KINDS[kind].largest_code + 1
    zeros = codes // 2 if symmetric else random.integers(0, codes, (rows, groups))
    return Source(random.integers(0, codes, (rows, columns)), scales, (-scales * zeros).astype(np.float32))


def kept(kind: str, it: Source, numbers: NDArray[np.float32] | None = None, tiles: slice = slice(None)) -> Packed:
    numbers = it.numbers if numbers is None else numbers
    data_shape, scales_shape = blocks.expected_shapes(kind, numbers.shape)
    assert scales_shape is not None
    data, row_scales = np.full(data_shape, 0xAA, np.uint8), np.full(scales_shape, np.nan, np.float32)
    rows = slice(tiles.start and 8 * tiles.start, tiles.stop and 8 * tiles.stop)
    errors = keep_codes(kind, numbers[rows], it.scales[rows], it.mins[rows], data[tiles], row_scales[tiles])
    codes, *_ = blocks.unpack(kind, data)
    return Packed(data, row_scales, errors, codes, blocks.dequantize(kind, data, row_scales, numbers.shape))


def relative(errors: NDArray[np.float64], numbers: NDArray[np.float32]) -> float:
    return float(errors.sum() / np.square(numbers, dtype=np.float64).sum())


@pytest.mark.parametrize("kind", LARGEST_ERROR)
@pytest.mark.parametrize(("rows", "columns"), [(8, 32), (24, 512), (13, 77), (1, 3), (3, 2048)])
def test_codes_stay_and_little_is_lost(kind: str, rows: int, columns: int) -> None:
    it = source(kind, rows, columns)
    found = kept(kind, it)
    # With a scale that is rounded, a large int8 code may be nearer to its neighbour.
    assert np.abs(found.codes[:rows, :columns] - it.codes).max() <= (kind == "int8")
    assert not found.codes[rows:].any()
    assert not found.codes[:, columns:].any()
    assert relative(found.errors, it.numbers) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", LARGEST_ERROR)
def test_it_errs_less_than_a_search(kind: str) -> None:
    it = source(kind, 16, 512)
    found = kept(kind, it)
    searched = search_blocks(kind, it.numbers, found.data, found.row_scales)
    assert (3 * found.errors < searched).all()


@pytest.mark.parametrize("kind", LARGEST_ERROR)
@pytest.mark.parametrize("largest", [255, 250, 241, 240])
def test_scales_of_whole_units_are_exact(kind: str, largest: int) -> None:
    it = source(kind, 8, 512)
    with_mins = kind in blocks.WITH_MINS
    largest &= -2 if with_mins else -1
    units = np.random.default_rng(1).integers(1, largest // 2, it.scales.shape) * 2
    units[:, 3] = largest
    scales = (units / 64).astype(np.float32)
    zero = (blocks.KINDS[kind].largest_code + 1) // 2 if with_mins else 0
    if with_mins:  # with all codes in use, no other min gives the same numbers
        it.codes[:, ::32], it.codes[:, 1::32] = 0, blocks.KINDS[kind].largest_code
    it = Source(it.codes, scales, -scales * np.float32(zero))
    found = kept(kind, it)
    np.testing.assert_array_equal(found.codes, it.codes)
    np.testing.assert_allclose(found.numbers, it.numbers, rtol=3e-6, atol=3e-6 * np.abs(it.numbers).max())


@pytest.mark.parametrize("kind", LARGEST_ERROR)
def test_negative_scales_count_from_the_other_end(kind: str) -> None:
    it = source(kind, 8, 256)
    signs = np.where(np.arange(8) % 3 == 0, -1, 1).astype(np.float32)
    turned = Source(it.codes, it.scales * signs, it.mins * signs)
    found = kept(kind, turned)
    other = (blocks.KINDS[kind].largest_code if kind in blocks.WITH_MINS else 0) - it.codes
    expected = np.where(np.repeat(signs, 32) < 0, other, it.codes)
    assert np.abs(found.codes - expected).max() <= (kind == "int8")
    assert relative(found.errors, turned.numbers) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", LARGEST_ERROR)
def test_zeros_and_constant_groups(kind: str) -> None:
    it = source(kind, 8, 96)
    nothing = Source(it.codes, 0 * it.scales, 0 * it.scales)
    assert not kept(kind, nothing).numbers.any()
    if kind in blocks.WITH_MINS:
        constant = Source(it.codes, 0 * it.scales, it.mins)
        assert kept(kind, constant).numbers == pytest.approx(constant.numbers, rel=1e-2)


@pytest.mark.parametrize("kind", LARGEST_ERROR)
def test_any_split_of_the_tiles_gives_the_same_bytes(kind: str) -> None:
    it = source(kind, 45, 70, symmetric=False)
    whole = kept(kind, it)
    for tiles in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = kept(kind, it, tiles=tiles)
        assert part.data[tiles].tobytes() == whole.data[tiles].tobytes()
        assert part.row_scales[tiles].tobytes() == whole.row_scales[tiles].tobytes()
        np.testing.assert_array_equal(part.errors, whole.errors[tiles])


@pytest.mark.parametrize("kind", LARGEST_ERROR)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 100),
    exponent=st.integers(-30, 34),
    misfit=st.sampled_from([0.0, 0.3, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_scales_give_a_sound_tile_and_its_true_error(
    kind: str, rows: int, columns: int, exponent: int, misfit: float, seed: int
) -> None:
    """Also where the numbers are not of these scales at all."""
    it = source(kind, rows, columns, seed, symmetric=False)
    factor = np.float32(10) ** np.float32(exponent)
    it = Source(it.codes, it.scales * factor, it.mins * factor)
    noise = np.random.default_rng(seed).uniform(-misfit, misfit, it.codes.shape) * factor
    numbers = (it.numbers + noise).astype(np.float32)
    found = kept(kind, it, numbers)
    assert np.isfinite(found.row_scales).all()
    wanted = numbers.astype(np.float64)
    error = ((found.numbers - wanted) ** 2).sum()
    assert found.errors.sum() == pytest.approx(error, rel=1e-2, abs=1e-11 * (wanted**2).sum())
