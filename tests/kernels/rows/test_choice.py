"""The choice of a token against its definition in f64: any width, hostile logits, all filters."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter import truth
from quantkit_kernels.rows.choice import BLOCK, NO_TOKEN, Chooser, block_maximum
from quantkit_kernels.simd import put_f32


@jit(entry=True)
def put_maximum(x, columns, block, maxima):
    put_f32(maxima + 4 * block, block_maximum(x, columns, block))
    return 0


ROUNDING = 2e-6
"""Share of all probability by which f32 exponentials may move an edge between two tokens (measured: 3e-7)."""

Logits = NDArray[np.float32]


class Filters(NamedTuple):
    """Parameters of a `Chooser`."""

    temp: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0


def kept(logits: Logits, filters: Filters) -> list[int]:
    """Tokens that the filters leave, in the order of the draw, by walking down the ranking."""
    ranking = sorted(range(logits.size), key=lambda token: (-logits[token], token))
    ranked = filters.top_p < 1 or 0 < filters.top_k < logits.size
    ranking = ranking[: filters.top_k or None]
    scores = logits.astype(np.float64) - float(logits.max())
    least = math.log(filters.min_p) if filters.min_p else -math.inf  # of scores: exp(-1e-40) is 1.0 in f64, and less
    left, reached, total = [], 0.0, sum(math.exp(scores[token]) for token in ranking)
    for token in ranking:
        if reached >= filters.top_p * total and filters.top_p < 1:
            break
        reached += math.exp(scores[token])
        if scores[token] >= least:
            left.append(token)
    return left if ranked else sorted(left)


def expected(logits: Logits, filters: Filters, uniform: float) -> set[int]:
    """The token on which the random number falls, and those whose edge it is next to."""
    found: set[int] = set()
    for moved in (-ROUNDING, 0.0, ROUNDING):
        left = kept(logits, filters._replace(top_p=filters.top_p * (1 + moved) if filters.top_p < 1 else 1.0))
        scores = logits[left].astype(np.float64) - float(logits.max())
        edges = np.cumsum(np.exp(scores / filters.temp))
        edges /= edges[-1]
        found |= {
            token
            for token, low, high in zip(left, [0.0, *edges], edges, strict=False)
            if low - ROUNDING <= uniform <= high + ROUNDING and high > low
        }
    return found


# Multiples of 1/64: differences are exact in f32, so equal means equal.
ordinary = st.integers(-1280, 1280).map(lambda number: number / 64)
hostile = st.sampled_from([-math.inf, -3.0e38, -1e30, -200.0, -87.5, -0.0, 0.0, 1e-40, 5.0])
rows = st.one_of(
    st.lists(ordinary, min_size=1, max_size=40),
    st.lists(st.one_of(ordinary, hostile), min_size=1, max_size=40).filter(lambda row: max(row) > -math.inf),
    st.builds(lambda number, size: [number] * size, ordinary, st.integers(1, 3 * BLOCK)),
)
filters = st.builds(
    Filters,
    temp=st.sampled_from([1e-5, 0.3, 1.0, 2.5, 1e9, 1e300]),
    top_p=st.sampled_from([1.0, 1e-9, 0.0501, 0.4999, 0.8999, 0.99]),
    min_p=st.sampled_from([0.0, 1e-30, 0.0501, 0.3001, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 1000]),
)
uniforms = st.floats(0.0, 1.0, exclude_max=True)


@settings(max_examples=400, deadline=None)
@given(row=rows, filters=filters, uniform=uniforms)
@example(row=[0.0, -0.0, 0.0], filters=Filters(top_k=1), uniform=0.5)
@example(row=[-math.inf, 3.0, -math.inf], filters=Filters(), uniform=0.0)
@example(row=[-3.0e38, 3.0e38], filters=Filters(temp=1e300), uniform=0.75)
@example(row=[-math.inf] * 20 + [1.0, 2.0], filters=Filters(temp=1e300, top_k=5, top_p=0.99), uniform=0.99)
@example(row=[1e-40, 0.0, 0.0], filters=Filters(temp=1e-5, min_p=1.0), uniform=0.5)
def test_by_definition(row: list[float], filters: Filters, uniform: float) -> None:
    logits = np.array(row, np.float32)
    assert Chooser(*filters)(logits, uniform) in expected(logits, filters, uniform)


@settings(max_examples=60, deadline=None)
@given(
    columns=st.integers(1, 6 * BLOCK),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.1, 3.0, 40.0]),
    filters=filters,
    uniform=uniforms,
)
def test_any_width(columns: int, seed: int, spread: float, filters: Filters, uniform: float) -> None:
    logits = (spread * np.random.default_rng(seed).standard_normal(columns)).astype(np.float32)
    assert Chooser(*filters)(logits, uniform) in expected(logits, filters, uniform)


@pytest.mark.parametrize(
    "filters",
    [Filters(), Filters(0.7, min_p=0.05), Filters(0.8, 0.95, 0.05, 40), Filters(0.8, 0.95), Filters(1.5, 0.5)],
)
def test_a_large_vocabulary(filters: Filters) -> None:
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal(150_001)).astype(np.float32)
    choose = Chooser(*filters)
    left = kept(logits, filters)
    edges = np.cumsum(np.exp((logits[left].astype(np.float64) - float(logits.max())) / filters.temp))
    for uniform in random.random(50):
        near = [edges.searchsorted((uniform + moved) * edges[-1]) for moved in (-ROUNDING, ROUNDING)]
        assert choose(logits, uniform) in left[near[0] : near[1] + 1]


@pytest.mark.parametrize("filters", [Filters(top_k=1), Filters(top_k=1, top_p=0.5), Filters(top_p=1e-9)])
def test_the_likeliest_is_the_first_of_equals(filters: Filters) -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        logits = random.integers(-3, 3, random.integers(1, 4 * BLOCK)).astype(np.float32)
        assert Chooser(*filters)(logits, 0.999) == int(logits.argmax())


@pytest.mark.parametrize("filters", [Filters(), Filters(top_k=2), Filters(top_p=0.5)])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_row_with_a_wrong_number_has_no_choice(filters: Filters, wrong: float) -> None:
    choose = Chooser(*filters)
    for columns in (1, 15, 16, 17, BLOCK, 3 * BLOCK + 5):
        for place in {0, columns // 2, columns - 1}:
            logits = np.zeros(columns, np.float32)
            logits[place] = wrong
            assert choose(logits, 0.5) == NO_TOKEN
        assert choose(np.full(columns, -math.inf, np.float32), 0.5) == NO_TOKEN
        assert choose(np.zeros(columns, np.float32), 0.0) == 0


def test_maxima_of_blocks_are_those_of_the_truth() -> None:
    random = np.random.default_rng(2)
    for columns in (1, 15, 16, 17, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 8 * BLOCK):
        logits = random.standard_normal((1, columns)).astype(np.float32)
        blocks = range(-(-columns // BLOCK))
        found = np.zeros(len(blocks), np.float32)
        for block in blocks:
            put_maximum(logits.ctypes.data, columns, block, found.ctypes.data)
        assert np.array_equal(found, truth.block_maxima(logits.astype(np.float64))[0])
        for wrong in (math.nan, math.inf):
            place = random.integers(columns)
            logits[0, place] = wrong
            put_maximum(logits.ctypes.data, columns, place // BLOCK, found.ctypes.data)
            assert found[place // BLOCK] == math.inf


def test_nothing_behind_the_row_is_read() -> None:
    """Rows that end before numbers that would be chosen, or refused."""
    for columns in (1, 15, 16, 17, BLOCK + 3):
        for behind in (50.0, math.nan):
            numbers = np.full(columns + 64, behind, np.float32)
            numbers[:columns] = np.arange(columns)
            for filters in (Filters(), Filters(top_k=1), Filters(top_p=0.5)):
                assert Chooser(*filters)(numbers[:columns], 0.9999) == columns - 1
