"""Pages of the cache: what `store_kv` writes, where, and what it keeps of large numbers."""

from __future__ import annotations

import numpy as np
import pytest

from attention_cache import KV_HEADS, LAYER, LAYERS, Cache, hadamard_length, in_spans, random_tokens, rotated
from quantkit_kernels.attention import pages as kv_pages
from quantkit_kernels.compile.jit import jit


def test_f16_cache_saturates() -> None:
    q, k, v = random_tokens(1, 1, 8)
    got = in_spans("f16", q, k, v * np.float32(1e6), [1])
    np.testing.assert_array_equal(got, np.clip(v * np.float32(1e6), -65504, 65504))


@pytest.mark.parametrize("kind", ["f16", "int8", "f32"])
@pytest.mark.parametrize("head_dim", [6, 64])
def test_store_says_whether_it_saturates(kind: str, head_dim: int) -> None:
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
def test_store_writes_its_own_position_alone(kind: str) -> None:
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


def test_store_int8() -> None:
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
def test_two_rotations_multiply_by_the_length(head_dim: int) -> None:
    x = random_tokens(1, 1, head_dim)[1][0, 0]
    expected = rotated(x)
    y, length = np.zeros_like(expected), hadamard_length(expected.size)
    rotate(x.ctypes.data, head_dim, y.ctypes.data)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(y @ y, length * (x @ x), rtol=1e-5)
    rotate(y.ctypes.data, y.size, y.ctypes.data)
    np.testing.assert_array_equal(y[:head_dim], length * x)  # small multiples of 1/64: sums are exact
    assert not y[head_dim:].any()
