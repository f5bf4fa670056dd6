"""Pages of the cache: what `store_kv` writes, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attention_cache import KV_HEADS, LAYER, LAYERS, Cache, Floats, hadamard_length, random_tokens, rotated
from quantkit_kernels.attention import pages as kv_pages
from quantkit_kernels.compile.jit import jit

Codes = NDArray[np.signedinteger[Any]]


def test_store_f32_writes_its_own_position_alone() -> None:
    cache = Cache("f32", 70, 40)
    _, k, v = random_tokens(1, 1, 40)
    cache.store(k, v, 66)
    # Position 66 is slot 2 of the second page; channels are padded to 48 by zeros.
    pages = cache.pages.view(np.float32)
    written = ~np.isnan(pages)
    assert not written[1].any()
    heads = written[0].reshape(LAYERS, KV_HEADS, 2, -1)
    assert not heads[1 - LAYER].any()
    keys, values = heads[LAYER, :, 0].reshape(KV_HEADS, 48, 64), heads[LAYER, :, 1].reshape(KV_HEADS, 64, 48)
    assert keys[:, :, 2].all()
    assert values[:, 2].all()
    assert keys.sum() == values.sum() == KV_HEADS * 48
    numbers = pages[0].reshape(LAYERS, KV_HEADS, 2, -1)[LAYER]
    keys, values = numbers[:, 0].reshape(KV_HEADS, 48, 64)[:, :, 2], numbers[:, 1].reshape(KV_HEADS, 64, 48)[:, 2]
    for got, expected in ((keys, k[0]), (values, v[0])):
        np.testing.assert_array_equal(got[:, :40], expected)
        assert not got[:, 40:].any()


def stored_codes(kind: str, k: Floats, v: Floats, position: int) -> tuple[Codes, Codes, Floats]:
    """Store one position in a page of 0xFF: each head's codes of keys and values [KV_HEADS, 48], and their scales."""
    cache, element = Cache(kind, 70, 40), np.dtype(kind)
    cache.store(k, v, position)
    assert (cache.pages[1] == 0xFF).all()
    heads = cache.pages[0].reshape(LAYERS, KV_HEADS, -1)
    assert (heads[1 - LAYER] == 0xFF).all()
    numbers = 2 * 64 * 48 * element.itemsize
    codes, scales = heads[LAYER, :, :numbers].view(element), heads[LAYER, :, numbers:].view(np.float32)
    slot = position - 64
    keys = codes[:, : 64 * 48].reshape(KV_HEADS, 24, 64, 2)  # pairs of channels
    values = codes[:, 64 * 48 :].reshape(KV_HEADS, 32, 48, 2)  # pairs of positions
    others = np.delete(keys, slot, axis=2), np.delete(values.swapaxes(2, 3).reshape(KV_HEADS, 64, 48), slot, axis=1)
    assert all((each == -1).all() for each in others)
    assert np.isnan(np.delete(scales, [slot, 64 + slot], axis=1)).all()
    return keys[:, :, slot].reshape(KV_HEADS, 48), values[:, slot // 2, :, slot % 2], scales[:, [slot, 64 + slot]]


@pytest.mark.parametrize("position", [66, 67])
def test_store_int16(position: int) -> None:
    _, k, v = random_tokens(1, 1, 40)
    k[0, 1] = 0
    keys, values, scales = stored_codes("int16", k, v, position)
    lengths, peaks = np.sqrt((k[0].astype(np.float64) ** 2).sum(1)), np.abs(v[0]).max(1)
    for x, got, expected, scale in ((k, keys, lengths / 32767, scales[:, 0]), (v, values, peaks / 16383, scales[:, 1])):
        np.testing.assert_allclose(scale, expected, rtol=1e-6)
        np.testing.assert_allclose(got[:, :40] * scale[:, None], x[0], atol=0.5001 * scale.max())
        assert not got[:, 40:].any()
        assert got[1].any() == x[0, 1].any()


@pytest.mark.parametrize("position", [66, 67])
def test_store_int8(position: int) -> None:
    _, k, v = random_tokens(1, 1, 40)
    k[0, 1] = 0
    keys, values, scales = stored_codes("int8", k, v, position)
    for x, got, scale in ((rotated(k[0]), keys, scales[:, 0]), (rotated(v[0]), values, scales[:, 1])):
        np.testing.assert_array_equal(scale, np.abs(x).max(1) / np.float32(127) / hadamard_length(48))
        np.testing.assert_allclose(got * scale[:, None], x / hadamard_length(48), atol=0.5001 * scale.max())
        assert got[1].any() == x[1].any()


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
