"""Attention over the paged cache against float64, and against itself: the same bits however the tokens are split into
runs.

Pages are full of NaN before anything is stored, so a position that nobody has written cannot leak unseen.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit_kernels import attention, blocks
from quantkit_kernels.jit import jit

LAYER, LAYERS, KV_HEADS = 1, 2, 2
TOLERANCE = 1e-5
"""Relative to the largest value, where scores are tens: f32 rounds them to some 1e-6. All numbers are exact in f16."""


@jit(entry=True)
def store_all(kind, k, v, stride, tokens, position, pages, layer, kv_heads, head_dim):
    for token in range(tokens):
        offset = token * stride
        attention.store_kv(kind, k + offset, v + offset, pages, position + token, layer, kv_heads, head_dim)


@jit(entry=True)
def attend_all(kind, q, out, stride, tokens, position, pages, layer, kv_heads, group, head_dim, scale, window, scratch):
    for kv_head in range(kv_heads):
        attention.attend(
            kind, q, stride, out, stride, tokens, position, pages, layer, kv_heads, kv_head, group, head_dim, scale,
            window, scratch,
        )  # fmt: skip


class Cache:
    """Pages of one sequence, in no order of addresses."""

    def __init__(self, kind, length, head_dim):
        self.kind, self.head_dim, self.code = kind, head_dim, blocks.KINDS[kind].code
        dtype = np.float16 if kind == "f16" else np.float32
        count = -(-length // attention.PAGE)
        size = attention.page_bytes(kind, LAYERS, KV_HEADS, head_dim) // dtype().itemsize
        self.pages = np.full((count, size), np.nan, dtype)
        self.table = np.array([page.ctypes.data for page in self.pages[::-1]], np.int64)
        self.scratch = np.full(attention.scratch_bytes(head_dim) // 4, np.nan, np.float32)

    def store(self, k, v, position):
        """k, v: f32 [tokens, KV_HEADS, head_dim]."""
        rows = [padded(x) for x in (k, v)]
        store_all(
            self.code, *(x.ctypes.data for x in rows), rows[0].strides[0], len(k), position, self.table.ctypes.data,
            LAYER, KV_HEADS, self.head_dim,
        )  # fmt: skip

    def attend(self, q, position, scale, window):
        """q: f32 [tokens, heads, head_dim] -> the same shape."""
        rows = padded(q)
        out = np.full_like(rows, 12345)
        attend_all(
            self.code, rows.ctypes.data, out.ctypes.data, rows.strides[0], len(q), position, self.table.ctypes.data,
            LAYER, KV_HEADS, q.shape[1] // KV_HEADS, self.head_dim, np.float32(scale), window,
            self.scratch.ctypes.data,
        )  # fmt: skip
        columns = q[0].size
        assert (out[:, columns:] == 12345).all(), "wrote past the last head"
        return out[:, :columns].reshape(q.shape)


def padded(x):
    """Rows of a multiple of 16 columns, the padding NaN."""
    rows = np.full((len(x), -(-x[0].size // 16) * 16), np.nan, np.float32)
    rows[:, : x[0].size] = x.reshape(len(x), -1)
    return rows


def random_tokens(length, group, head_dim, seed=0):
    """q, k, v whose numbers are multiples of 1/64: the same on every machine, exact in f16."""
    rng = np.random.default_rng(seed)
    heads = (KV_HEADS * group, KV_HEADS, KV_HEADS)
    return [(rng.integers(-128, 129, (length, n, head_dim)) / 64).astype(np.float32) for n in heads]


def in_runs(kind, q, k, v, runs, scale, window=0):
    """Store and attend run after run; `runs` is repeated until all tokens are done."""
    cache = Cache(kind, len(q), q.shape[2])
    out, position = [], 0
    while position < len(q):
        end = min(position + min(runs[len(out) % len(runs)], attention.RUN), len(q))
        cache.store(k[position:end], v[position:end], position)
        out.append(cache.attend(q[position:end], position, scale, window))
        position = end
    return np.concatenate(out)


def exact(q, k, v, scale, window=0):
    """Attention in float64."""
    group = q.shape[1] // KV_HEADS
    q, k, v = (x.astype(np.float64) for x in (q, np.repeat(k, group, 1), np.repeat(v, group, 1)))
    scores = np.einsum("ihc,jhc->hij", q, k) * scale
    i, j = np.indices(scores.shape[1:])
    scores[:, (j > i) | ((i - j >= window) if window else False)] = -np.inf
    weights = np.exp(scores - scores.max(2, keepdims=True))
    return np.einsum("hij,jhc->ihc", weights / weights.sum(2, keepdims=True), v)


def assert_close(got, expected):
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("group", [1, 3, 4, 7])
@pytest.mark.parametrize("head_dim", [6, 64])
@pytest.mark.parametrize("window", [0, 5, 70, 300])
def test_equals_float64(kind, group, head_dim, window):
    q, k, v = random_tokens(330, group, head_dim)
    got = in_runs(kind, q, k, v, [16], 0.3, window)
    assert_close(got, exact(q, k, v, np.float32(0.3), window))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["f16", "f32"]), st.integers(1, 5), st.integers(1, 50), st.integers(1, 90), st.integers(0, 90),
    st.lists(st.integers(1, 16), min_size=1, max_size=5), st.integers(0, 1000),
)  # fmt: skip
def test_any_shape_in_any_runs(kind, group, half, length, window, runs, seed):
    q, k, v = random_tokens(length, group, 2 * half, seed)
    scale = (2 * half) ** -0.5
    got = in_runs(kind, q, k, v, runs, scale, window)
    assert_close(got, exact(q, k, v, np.float32(scale), window))
    assert got.tobytes() == in_runs(kind, q, k, v, [1], scale, window).tobytes()


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("group", [1, 3, 4, 7])
@pytest.mark.parametrize("window", [0, 100])
def test_same_bits_in_runs_across_segments(kind, group, window):
    q, k, v = random_tokens(attention.SEGMENT + 50, group, 20)
    alone = in_runs(kind, q, k, v, [1], 0.25, window)
    for runs in ([16], [7], [3, 16, 1, 5]):
        assert alone.tobytes() == in_runs(kind, q, k, v, runs, 0.25, window).tobytes()


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v = random_tokens(300, 3, 16)
    # Scores up to 2**16 in steps of 1/4: exact in f32.
    assert_close(in_runs("f32", 1024 * q, k, v, [16], 1.0), exact(1024 * q, k, v, 1.0))


def test_one_position_gives_its_value():
    q, k, v = random_tokens(1, 3, 10)
    got = in_runs("f16", q, k, v, [1], 1.0)
    np.testing.assert_array_equal(got, np.repeat(v, 3, 1))


def test_f16_cache_saturates():
    q, k, v = random_tokens(1, 1, 8)
    got = in_runs("f16", q, k, v * np.float32(1e6), [1], 1.0)
    np.testing.assert_array_equal(got, np.clip(v * np.float32(1e6), -65504, 65504))


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_store_writes_its_own_position_alone(kind):
    cache = Cache(kind, 70, 6)
    _, k, v = random_tokens(1, 1, 6)
    cache.store(k, v, 66)
    written = ~np.isnan(cache.pages)
    # Position 66 is slot 2 of the second page; values are padded to whole registers by zeros.
    assert not written[1].any()
    layers = written[0].reshape(LAYERS, KV_HEADS, -1)
    assert not layers[1 - LAYER].any()
    for head in range(KV_HEADS):
        keys = layers[LAYER, head, : attention.PAGE * 6].reshape(attention.PAGE // 8, 6, 8)
        values = layers[LAYER, head, attention.PAGE * 6 :].reshape(attention.PAGE, -1)
        assert keys[0, :, 2].all()
        assert keys.sum() == 6
        assert values[2].all()
        assert values.sum() == values[2].size


def test_bits_are_the_same_on_every_machine():
    q, k, v = random_tokens(300, 3, 20)
    out = in_runs("f16", q, k, v, [16], 0.25, 270)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:12] == DIGEST


DIGEST = "51af5ed48bea"
"""Of the result on x86-64 with AVX2, AVX-512 VNNI and plain LLVM vectors, which is equal."""


def test_code_of_f16_is_that_of_the_table():
    assert blocks.KINDS["f16"].code == attention.F16
