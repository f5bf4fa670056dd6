"""Attention over the paged cache against float64, and against itself: the same bits however the tokens are split into
spans.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_cache import KV_HEADS, SPAN, exact, in_spans, kept, random_tokens
from quantkit_kernels.attention import operands

TOLERANCE = {"f32": 1e-5, "int16": 1e-3, "int8": 1e-3}
"""Relative to the largest value, where scores are tens: f32 rounds them to some 1e-6, int16 queries and keys to some
1e-4."""
VARIANTS: list[dict[str, Any]] = [
    {"window": 270},
    {"softcap": 1.0},
    {"sinks": (1.0, -2.0, 60.0, 3.0)},
    {"slopes": (0.5, 0.01, 0.1, 0.0, 2.0)},
    {"window": 270, "chunked": True},
]
"""Each way in which scores become weights, where it changes much."""


def assert_close(kind: str, got: NDArray[np.floating], expected: NDArray[np.floating]) -> None:
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= TOLERANCE[kind] * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["int16", "int8", "f32"])
@pytest.mark.parametrize("heads_per_kv", [1, 3, 7])
@pytest.mark.parametrize(("head_dim", "length"), [(6, 330), (64, 330), (80, 200), (256, 150)])
@pytest.mark.parametrize("window", [0, 5, 140])
def test_equals_float64(kind: str, heads_per_kv: int, head_dim: int, length: int, window: int) -> None:
    q, k, v = random_tokens(length, heads_per_kv, head_dim)
    scale = head_dim**-0.5
    got = in_spans(kind, q, k, v, [SPAN], scale=scale, window=window)
    assert_close(kind, got, exact(q, *kept(kind, k, v), scale=scale, window=window))


def test_int8_is_near_what_it_rounds() -> None:
    q, k, v = random_tokens(300, 3, 64)
    expected = exact(q, k, v, scale=0.125)
    error = in_spans("int8", q, k, v, [SPAN], scale=0.125) - expected
    assert np.sqrt((error**2).mean()) <= INT8_ERROR * np.sqrt((expected**2).mean())


INT8_ERROR = 0.02
"""Of uniform keys and values; the scores' spread is 1.3 and magnifies the keys' 0.3 %."""


variants = st.fixed_dictionaries(
    {
        "bent": st.sampled_from([{}, {"softcap": 0.5}, {"softcap": 3.0}, {"slopes": (0.5,)}, {"slopes": (0.1, 0.7)}]),
        "sinks": st.sampled_from([(), (0.0,), (-200.0, 3.0, 1.0, 90.0, -1.0)]),
        "window": st.integers(0, 200),
        "chunked": st.booleans(),
    }
)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["int16", "int8", "f32"]), st.integers(1, 8), st.integers(1, 256), st.none() | st.integers(1, 256),
    st.integers(1, 200), variants, st.lists(st.integers(1, SPAN), min_size=1, max_size=5), st.integers(0, 3),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_shape_in_any_spans(
    kind: str,
    heads_per_kv: int,
    head_dim: int,
    v_head_dim: int | None,
    length: int,
    variant: dict[str, Any],
    lengths: list[int],
    threads: int,
    seed: int,
) -> None:
    q, k, v = random_tokens(length, heads_per_kv, head_dim, v_head_dim, seed)
    variant = {"scale": head_dim**-0.5, **variant.pop("bent"), **variant}
    got = in_spans(kind, q, k, v, lengths, threads, **variant)
    assert_close(kind, got, exact(q, *kept(kind, k, v), **variant))
    assert got.tobytes() == in_spans(kind, q, k, v, [1], **variant).tobytes()


@pytest.mark.parametrize("kind", ["int16", "int8", "f32"])
@pytest.mark.parametrize("heads_per_kv", [1, 3, 4, 7])
@pytest.mark.parametrize("window", [0, 100])
def test_same_bits_in_spans_across_segments(kind: str, heads_per_kv: int, window: int) -> None:
    q, k, v = random_tokens(2 * operands.SEGMENT + 50, heads_per_kv, 20)
    alone = in_spans(kind, q, k, v, [1], scale=0.25, window=window)
    for lengths in ([SPAN], [7], [3, 16, 1, 5]):
        for threads in (0, 1, 2, 7):
            assert alone.tobytes() == in_spans(kind, q, k, v, lengths, threads, scale=0.25, window=window).tobytes()


@pytest.mark.parametrize("kind", ["int16", "int8", "f32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(kind: str, variant: dict[str, Any]) -> None:
    q, k, v = random_tokens(300, 3, 40)
    got = in_spans(kind, q, k, v, [SPAN], scale=0.25, **variant)
    assert_close(kind, got, exact(q, *kept(kind, k, v), scale=0.25, **variant))
    for lengths, threads in (([1], 0), ([7], 2), ([3, 16, 1, 5], 7)):
        assert got.tobytes() == in_spans(kind, q, k, v, lengths, threads, scale=0.25, **variant).tobytes()
    assert np.abs(got - in_spans(kind, q, k, v, [SPAN], scale=0.25)).max() > 0.01


@pytest.mark.parametrize("kind", ["int16", "int8", "f32"])
@pytest.mark.parametrize(("head_dim", "v_head_dim"), [(192, 128), (6, 80), (256, 20)])
def test_values_of_another_head_size_than_keys(kind: str, head_dim: int, v_head_dim: int) -> None:
    q, k, v = random_tokens(300, 3, head_dim, v_head_dim)
    got = in_spans(kind, q, k, v, [SPAN], scale=head_dim**-0.5)
    assert_close(kind, got, exact(q, *kept(kind, k, v), scale=head_dim**-0.5))
    for lengths, threads in (([1], 0), ([7], 2), ([3, 16, 1, 5], 7)):
        assert got.tobytes() == in_spans(kind, q, k, v, lengths, threads, scale=head_dim**-0.5).tobytes()


def test_large_scores_neither_overflow_nor_vanish() -> None:
    q, k, v = random_tokens(300, 3, 16)
    # Scores up to 2**16, which f32 rounds to 2**-8.
    got, expected = in_spans("f32", 1024 * q, k, v, [16]), exact(1024 * q, k, v)
    assert np.abs(got - expected).max() <= 2.0**-8 * np.abs(expected).max()


def test_one_position_gives_its_value() -> None:
    q, k, v = random_tokens(1, 3, 10)
    got = in_spans("int16", q, k, v, [1])
    np.testing.assert_allclose(got, np.repeat(v, 3, 1), atol=1e-4 * np.abs(v).max())


def test_a_large_channel_does_not_drown_the_others() -> None:
    q, k, v = random_tokens(300, 3, 64)
    k[:, :, 5] = 100  # the same for all keys, as a bias makes it: no score changes
    expected = exact(q, k, v, scale=0.125)
    error = in_spans("int8", q, k, v, [SPAN], scale=0.125) - expected
    assert np.sqrt((error**2).mean()) <= 3 * INT8_ERROR * np.sqrt((expected**2).mean())


def rounded_f16(x: NDArray[np.float32]) -> NDArray[np.float64]:
    return x.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(("key_bias", "query_bias", "sharpness"), [(0, 0, 1), (40, 0, 1), (40, 10, 1), (0, 0, 4)])
def test_int16_loses_no_more_than_f16(head_dim: int, key_bias: int, query_bias: int, sharpness: int) -> None:
    rng = np.random.default_rng(head_dim)
    q, k, v = (rng.standard_normal((300, heads, head_dim)).astype(np.float32) for heads in (6, 2, 2))
    q *= sharpness
    q[:, :, 5] += query_bias  # channels larger than the others, as models have them
    k[:, :, 5] += key_bias
    v[:, :, 3] *= 8
    scale = head_dim**-0.5
    expected = exact(q, k, v, scale=scale)
    error = in_spans("int16", q, k, v, [SPAN], scale=scale) - expected
    allowed = exact(q, rounded_f16(k), rounded_f16(v), scale=scale) - expected
    assert np.sqrt((error**2).mean()) <= 1.05 * np.sqrt((allowed**2).mean())


@pytest.mark.parametrize("head_dim", [16, 64, 512])
def test_the_largest_sums_do_not_overflow(head_dim: int) -> None:
    """Queries and keys of one direction; 128 equal weights of values that are all as large as can be."""
    ones = np.ones((operands.SEGMENT, KV_HEADS, head_dim), np.float32)
    for k in (ones, ones * (np.arange(head_dim) == 3)):
        for sign in (1, -1):
            np.testing.assert_allclose(in_spans("int16", sign * k, k, -ones, [SPAN], scale=0.25), -ones, rtol=1e-3)


@pytest.mark.parametrize("kind", ["int16", "int8"])
def test_what_is_not_finite_stays_visible(kind: str) -> None:
    for place, number in ((0, np.nan), (1, np.inf), (2, -np.inf)):
        q, k, v = inputs = random_tokens(3, 1, 32)
        inputs[place][1, 0, 7] = number
        got = in_spans(kind, q, k, v, [1])
        assert np.isfinite(got[0]).all()
        assert not np.isfinite(got[1, 0]).all()
        np.testing.assert_array_equal(in_spans(kind, q, k, v, [3])[0], got[0])


@pytest.mark.parametrize("kind", ["int16", "int8"])
def test_bits_are_the_same_on_every_machine(kind: str) -> None:
    q, k, v = random_tokens(300, 3, 20)
    digests = []
    for variant in VARIANTS:
        out = in_spans(kind, q, k, v, [16], scale=0.25, **variant)
        digests.append(hashlib.sha256(out.tobytes()).hexdigest()[:12])
    assert digests == DIGESTS[kind]


DIGESTS = {
    "int16": ["c73f71a8b277", "0f670ac1c9f5", "3152c0f3f45a", "344e5c7266f1", "de470fc1a787"],
    "int8": ["dc1b2922850c", "6cd142809364", "651671abfaed", "791f9e3aa7b4", "c4e861da9c6b"],
}
"""Of the results of each variant on x86-64 with AVX2, AVX-512 VNNI and plain LLVM vectors, which are equal."""
