"""Attention over the paged cache against float64, and against itself: the same bits however the tokens are split into
spans.

Pages are full of NaN before anything is stored, so a position that nobody has written cannot leak unseen.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit_kernels import blocks
from quantkit_kernels.attention import operands, sharing
from quantkit_kernels.attention import pages as kv_pages
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.threads import tag_of
from quantkit_kernels.operands import Rows, from_token

LAYER, LAYERS, KV_HEADS = 1, 2, 2
TOLERANCE = 1e-5
"""Relative to the largest value, where scores are tens: f32 rounds them to some 1e-6. All numbers are exact in f16."""


@jit(entry=True)
def store_all(heads, k, v, tokens, position, pages):
    """Returns how many tokens saturated."""
    saturated = 0
    for token in range(tokens):
        keys, values = from_token(k, token).address, from_token(v, token).address
        saturated += kv_pages.store_kv(
            heads.kind, keys, values, pages, position + token, heads.offset, heads.kv_heads, heads.head_dim
        )
    return saturated


@jit(entry=True)
def attend_all(heads, q, out, span, counter, threads, partials, scratch):
    """Returns how many pieces are left, which should be none."""
    pieces = sharing.pieces_of(heads, 1, span, threads, partials)
    return pieces.count - sharing.attend(heads, q, out, span, pieces, counter, tag_of(1), scratch)


class Cache:
    """Pages of one sequence, in no order of addresses."""

    def __init__(self, kind, length, head_dim):
        self.kind, self.head_dim, self.code = kind, head_dim, blocks.KINDS[kind].code
        count = -(-length // kv_pages.PAGE)
        size = kv_pages.layer_bytes(kind, KV_HEADS, head_dim)
        self.offset = LAYER * size
        # int8 has no NaN, but its scales have; these bytes are NaN as f16 and as f32.
        self.pages = np.full((count, LAYERS * size), 0xFF, np.uint8)
        self.table = np.array([page.ctypes.data for page in self.pages[::-1]], np.int64)

    def heads(self, heads_per_kv=1, scale=1.0, window=0):
        return operands.Heads(self.code, self.offset, KV_HEADS, heads_per_kv, self.head_dim, np.float32(scale), window)

    def store(self, k, v, position):
        """k, v: f32 [tokens, KV_HEADS, head_dim]. Returns how many tokens saturated."""
        keys, values = padded(k), padded(v)
        return store_all(self.heads(), rows_of(keys), rows_of(values), len(k), position, self.table.ctypes.data)

    def attend(self, q, position, scale, window, threads=0):
        """q: f32 [tokens, heads, head_dim] -> the same shape. Threads that share the work take turns here."""
        rows, heads_per_kv = padded(q), q.shape[1] // KV_HEADS
        out = np.full_like(rows, 12345)
        span = np.array([0, len(q), position, self.table.ctypes.data], np.int64)
        counter = np.zeros(1, np.int64)
        scratch = np.full(operands.scratch_bytes(heads_per_kv, self.head_dim) // 4, np.nan, np.float32)
        partials = np.zeros(sharing.partials_bytes(threads), np.uint8)
        left = attend_all(
            self.heads(heads_per_kv, scale, window), rows_of(rows), rows_of(out), span.ctypes.data, counter.ctypes.data,
            threads, partials.ctypes.data, scratch.ctypes.data,
        )  # fmt: skip
        assert left == 0
        columns = q[0].size
        assert (out[:, columns:] == 12345).all(), "wrote past the last head"
        return out[:, :columns].reshape(q.shape)


def rows_of(array):
    return Rows(array.ctypes.data, array.strides[0])


def padded(x):
    """Rows of a multiple of 16 columns, the padding NaN."""
    rows = np.full((len(x), -(-x[0].size // 16) * 16), np.nan, np.float32)
    rows[:, : x[0].size] = x.reshape(len(x), -1)
    return rows


def random_tokens(length, heads_per_kv, head_dim, seed=0):
    """q, k, v whose numbers are multiples of 1/64: the same on every machine, exact in f16."""
    rng = np.random.default_rng(seed)
    heads = (KV_HEADS * heads_per_kv, KV_HEADS, KV_HEADS)
    return [(rng.integers(-128, 129, (length, n, head_dim)) / 64).astype(np.float32) for n in heads]


def in_spans(kind, q, k, v, lengths, scale, window=0, threads=0):
    """Store and attend span after span; `lengths` is repeated until all tokens are done. `threads` share the work."""
    cache = Cache(kind, len(q), q.shape[2])
    out, position = [], 0
    while position < len(q):
        end = min(position + min(lengths[len(out) % len(lengths)], operands.SPAN_TOKENS), len(q))
        cache.store(k[position:end], v[position:end], position)
        out.append(cache.attend(q[position:end], position, scale, window, threads))
        position = end
    return np.concatenate(out)


def exact(q, k, v, scale, window=0):
    """Attention in float64."""
    heads_per_kv = q.shape[1] // KV_HEADS
    q, k, v = (x.astype(np.float64) for x in (q, np.repeat(k, heads_per_kv, 1), np.repeat(v, heads_per_kv, 1)))
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) * scale
    i, j = np.indices(scores.shape[1:])
    scores[:, (j > i) | ((i - j >= window) if window else False)] = -np.inf
    weights = np.exp(scores - scores.max(2, keepdims=True))
    return (weights / weights.sum(2, keepdims=True) @ v).transpose(1, 0, 2)


def assert_close(got, expected):
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def hadamard_length(channels):
    """Channels that an int8 cache rotates together."""
    return min(channels & -channels, kv_pages.LONGEST)


def rotated(x):
    """Heads as an int8 cache rotates them, the padding 0; in f32, with the sums in its order."""
    y = np.zeros((*x.shape[:-1], max(32, -(-x.shape[-1] // 16) * 16)), np.float32)
    y[..., : x.shape[-1]] = x
    apart = 1
    while apart < hadamard_length(y.shape[-1]):
        pairs = y.reshape(*x.shape[:-1], -1, 2, apart)
        y = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(y.shape)
        apart *= 2
    return y


def rounded(x):
    """What an int8 cache keeps of keys or values [tokens, heads, head_dim]."""
    y = rotated(x)
    scale = np.abs(y).max(2, keepdims=True) / np.float32(127)
    y = np.round(y * (np.float32(1) / scale)).astype(np.float64) * scale
    basis = rotated(np.eye(y.shape[-1], dtype=np.float32)).astype(np.float64)
    return (y @ basis / hadamard_length(y.shape[-1]))[..., : x.shape[-1]]


def kept(kind, k, v):
    """What a cache keeps of `random_tokens`."""
    return (rounded(k), rounded(v)) if kind == "int8" else (k, v)


@pytest.mark.parametrize("kind", ["f16", "int8", "f32"])
@pytest.mark.parametrize("heads_per_kv", [1, 3, 7])
@pytest.mark.parametrize(("head_dim", "length"), [(6, 330), (64, 330), (80, 200), (256, 150)])
@pytest.mark.parametrize("window", [0, 5, 140])
def test_equals_float64(kind, heads_per_kv, head_dim, length, window):
    q, k, v = random_tokens(length, heads_per_kv, head_dim)
    scale = head_dim**-0.5
    got = in_spans(kind, q, k, v, [operands.SPAN_TOKENS], scale, window)
    assert_close(got, exact(q, *kept(kind, k, v), np.float32(scale), window))


def test_int8_is_near_what_it_rounds():
    q, k, v = random_tokens(300, 3, 64)
    expected = exact(q, k, v, 0.125)
    error = in_spans("int8", q, k, v, [operands.SPAN_TOKENS], 0.125) - expected
    assert np.sqrt((error**2).mean()) <= INT8_ERROR * np.sqrt((expected**2).mean())


INT8_ERROR = 0.02
"""Of uniform keys and values; the scores' spread is 1.3 and magnifies the keys' 0.3 %."""


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["f16", "int8", "f32"]), st.integers(1, 8), st.integers(1, 128), st.integers(1, 200),
    st.integers(0, 200), st.lists(st.integers(1, operands.SPAN_TOKENS), min_size=1, max_size=5), st.integers(0, 3),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_shape_in_any_spans(kind, heads_per_kv, half, length, window, lengths, threads, seed):
    q, k, v = random_tokens(length, heads_per_kv, 2 * half, seed)
    scale = (2 * half) ** -0.5
    got = in_spans(kind, q, k, v, lengths, scale, window, threads)
    assert_close(got, exact(q, *kept(kind, k, v), np.float32(scale), window))
    assert got.tobytes() == in_spans(kind, q, k, v, [1], scale, window).tobytes()


@pytest.mark.parametrize("kind", ["f16", "int8", "f32"])
@pytest.mark.parametrize("heads_per_kv", [1, 3, 4, 7])
@pytest.mark.parametrize("window", [0, 100])
def test_same_bits_in_spans_across_segments(kind, heads_per_kv, window):
    q, k, v = random_tokens(2 * operands.SEGMENT + 50, heads_per_kv, 20)
    alone = in_spans(kind, q, k, v, [1], 0.25, window)
    for lengths in ([operands.SPAN_TOKENS], [7], [3, 16, 1, 5]):
        for threads in (0, 1, 2, 7):
            assert alone.tobytes() == in_spans(kind, q, k, v, lengths, 0.25, window, threads).tobytes()


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v = random_tokens(300, 3, 16)
    # Scores up to 2**16 in steps of 1/4: exact in f32.
    assert_close(in_spans("f32", 1024 * q, k, v, [16], 1.0), exact(1024 * q, k, v, 1.0))


def test_one_position_gives_its_value():
    q, k, v = random_tokens(1, 3, 10)
    got = in_spans("f16", q, k, v, [1], 1.0)
    np.testing.assert_array_equal(got, np.repeat(v, 3, 1))


def test_f16_cache_saturates():
    q, k, v = random_tokens(1, 1, 8)
    got = in_spans("f16", q, k, v * np.float32(1e6), [1], 1.0)
    np.testing.assert_array_equal(got, np.clip(v * np.float32(1e6), -65504, 65504))


@pytest.mark.parametrize("kind", ["f16", "int8", "f32"])
@pytest.mark.parametrize("head_dim", [6, 64])
def test_store_says_whether_it_saturates(kind, head_dim):
    cache = Cache(kind, 70, head_dim)
    k, v = np.full((2, 3, KV_HEADS, head_dim), 65504, np.float32)
    assert not cache.store(k, -v, 0)
    for x in (k, v):
        x[1, -1, -1] = -65505
        assert cache.store(k, v, 63) == (kind == "f16")
        x[1, -1, -1] = 0
    k[0], v[2] = np.inf, -np.inf
    assert cache.store(k, v, 63) == 2 * (kind == "f16")


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_store_writes_its_own_position_alone(kind):
    cache = Cache(kind, 70, 40)
    _, k, v = random_tokens(1, 1, 40)
    cache.store(k, v, 66)
    # Position 66 is slot 2 of the second page; channels are padded to 48 by zeros.
    pages = cache.pages.view(np.float16 if kind == "f16" else np.float32)
    written = ~np.isnan(pages)
    assert not written[1].any()
    heads = written[0].reshape(LAYERS, KV_HEADS, 2, -1)
    assert not heads[1 - LAYER].any()
    keys = heads[LAYER, :, 0].reshape(KV_HEADS, 2, 48, 32)
    values = heads[LAYER, :, 1].reshape(KV_HEADS, 64, 48)
    assert keys[:, 0, :, 2].all()
    assert values[:, 2].all()
    assert keys.sum() == values.sum() == KV_HEADS * 48
    numbers = pages[0].reshape(LAYERS, KV_HEADS, 2, -1)[LAYER]
    np.testing.assert_array_equal(numbers[:, 0].reshape(KV_HEADS, 2, 48, 32)[:, 0, :40, 2], k[0])
    np.testing.assert_array_equal(numbers[:, 1].reshape(KV_HEADS, 64, 48)[:, 2, :40], v[0])
    assert not numbers[:, 1].reshape(KV_HEADS, 64, 48)[:, 2, 40:].any()


def test_store_int8():
    cache = Cache("int8", 70, 40)
    _, k, v = random_tokens(1, 1, 40)
    k[0, 1] = 0
    cache.store(k, v, 66)
    heads = cache.pages[0].reshape(LAYERS, KV_HEADS, -1)[LAYER]
    codes, scales = heads[:, : 2 * 64 * 48].view(np.int8), heads[:, 2 * 64 * 48 :].view(np.float32)
    keys = codes[:, : 64 * 48].reshape(KV_HEADS, 2, 48, 32)[:, 0, :, 2]
    values = codes[:, 64 * 48 :].reshape(KV_HEADS, 64, 48)[:, 2]
    for x, got, scale in ((rotated(k[0]), keys, scales[:, 2]), (rotated(v[0]), values, scales[:, 66])):
        np.testing.assert_array_equal(scale, np.abs(x).max(1) / np.float32(127) / hadamard_length(48))
        np.testing.assert_allclose(got * scale[:, None], x / hadamard_length(48), atol=0.5001 * scale.max())
        assert got[1].any() == x[1].any()
    assert np.isnan(np.delete(scales, [2, 66], axis=1)).all()


@jit(entry=True)
def rotate(x, head_dim, out):
    kv_pages.rotate(x, head_dim, out)


@pytest.mark.parametrize("head_dim", [6, 40, 64, 96, 128, 256, 512, 528])
def test_two_rotations_multiply_by_the_length(head_dim):
    x = random_tokens(1, 1, head_dim)[1][0, 0]
    expected = rotated(x)
    y, length = np.zeros_like(expected), hadamard_length(expected.size)
    rotate(x.ctypes.data, head_dim, y.ctypes.data)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(y @ y, length * (x @ x), rtol=1e-5)
    rotate(y.ctypes.data, y.size, y.ctypes.data)
    np.testing.assert_array_equal(y[:head_dim], length * x)  # small multiples of 1/64: sums are exact
    assert not y[head_dim:].any()


def test_a_large_channel_does_not_drown_the_others():
    q, k, v = random_tokens(300, 3, 64)
    k[:, :, 5] = 100  # the same for all keys, as a bias makes it: no score changes
    expected = exact(q, k, v, 0.125)
    error = in_spans("int8", q, k, v, [operands.SPAN_TOKENS], 0.125) - expected
    assert np.sqrt((error**2).mean()) <= 3 * INT8_ERROR * np.sqrt((expected**2).mean())


@pytest.mark.parametrize("kind", ["f16", "int8"])
def test_bits_are_the_same_on_every_machine(kind):
    q, k, v = random_tokens(300, 3, 20)
    out = in_spans(kind, q, k, v, [16], 0.25, 270)
    assert hashlib.sha256(out.tobytes()).hexdigest()[:12] == DIGESTS[kind]


DIGESTS = {"f16": "edf13832fefe", "int8": "057579e7b8b1"}
"""Of the results on x86-64 with AVX2, AVX-512 VNNI and plain LLVM vectors, which are equal."""
