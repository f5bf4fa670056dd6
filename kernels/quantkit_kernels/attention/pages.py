"""Pages of the KV cache: how their bytes are laid out, and the kernels that write them.

A page holds `PAGE` consecutive positions of one sequence, for all layers and KV heads. A layer begins at a byte offset
of its own, the same in every page, so layers may differ in heads and head sizes. Of each KV head, at `page + offset +
head * head_bytes`:

    keys          [PAGE / KEY_ROW][padded][KEY_ROW positions]   lanes are positions: no sums over lanes
    values        [PAGE][padded]                                lanes are channels
    key scales    [PAGE] f32                                    of int8 alone
    value scales  [PAGE] f32                                    of int8 alone

`padded` is head_dim rounded up to whole vectors of 16 numbers, and at least 32; the padding is zero. A row of
`KEY_ROW` keys is a cache line of f16, so both halves are read as one stream, keys then values, 16 KiB for heads of 64
channels.

Numbers are f16, saturated; or int8 codes -127..127 with one scale for each position and head, `absmax / 127`; or f32
for the reference path.

An int8 cache holds its heads rotated by a Walsh-Hadamard transform, `length` channels at a time. A few channels of most
keys are far larger than the others, and a scale that fits them wastes the codes of the rest; rotated, each channel is a
sum of all, and all are about as large. Attention rotates queries as well, which keeps scores what they were, and
rotates results, sums of rotated values, once more, which undoes it. Both multiply by `length`, a power of two; the
scales in pages are divided by it beforehand. Ashkboos et al., QuaRot (arXiv:2404.00456), and Liu et al., SpinQuant
(arXiv:2405.16406), rotate their caches so.

`segments.py` reads pages; the interpreter calls `store_kv`; the engine owns their memory.
"""

from __future__ import annotations

import numpy as np

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    F16_MAX,
    absolute,
    get_i64,
    hadamard_lanes,
    load_line_f32,
    load_wide_f16,
    load_wide_i8,
    load_wide_partial_f32,
    max_lanes,
    maximum,
    put_f32,
    round_even,
    scatter_f16,
    scatter_f32,
    scatter_i8,
    splat_wide,
    stack_f32,
    store,
    store_f16,
    store_i8,
    to_i32,
    zeros_wide,
)

PAGE = 64
"""Positions of a page."""
KEY_ROW = 32
"""Positions whose keys stand side by side."""
LONGEST = 256
"""Channels that are rotated together at most."""
F32, F16, INT8 = (KINDS[name].code for name in ("f32", "f16", "int8"))
SIZES = {"f32": 4, "f16": 2, "int8": 1}
"""Bytes of a number."""
SCALES_BYTES = 2 * 4 * PAGE
"""Scales of one head of an int8 page."""


@jit
def padded(head_dim):
    """Channels of a row in the cache."""
    return max(32, (head_dim + 15) & ~15)


@jit
def numbers_bytes(head_dim, size):
    """Bytes of the keys and values of one head of a page."""
    return 2 * PAGE * padded(head_dim) * size


@jit
def head_bytes(kind, head_dim):
    """Bytes of one head of a page."""
    if kind == INT8:
        return numbers_bytes(head_dim, 1) + SCALES_BYTES
    return numbers_bytes(head_dim, 2 if kind == F16 else 4)


def layer_bytes(kind: str, kv_heads: int, head_dim: int) -> int:
    """Bytes of one layer in a page, a multiple of 64."""
    numbers = 2 * PAGE * padded.py_func(head_dim) * SIZES[kind]
    return kv_heads * (numbers + (SCALES_BYTES if kind == "int8" else 0))


@jit
def store_kv(kind, k, v, pages, position, offset, kv_heads, head_dim):
    """Write one token's keys and values, f32 rows of `kv_heads * head_dim`, into its sequence's page.

    The layer begins `offset` bytes behind the start of the page. Returns whether a number was beyond the range of f16,
    and stored as its largest.
    """
    step = head_bytes(kind, head_dim)
    head = get_i64(pages + 8 * (position >> 6)) + offset
    slot = position & 63
    peak = zeros_wide(1, 1)
    for _ in range(kv_heads):
        if kind == F16:
            peak = maximum(peak, _store_f16(k, v, head, slot, head_dim))
        elif kind == INT8:
            _store_int8(k, v, head, slot, head_dim)
        else:
            _store_f32(k, v, head, slot, head_dim)
        k, v = k + 4 * head_dim, v + 4 * head_dim
        head += step
    return max_lanes(peak) > F16_MAX


@jit
def _places(head, slot, channels, size):
    """Where a position's first key and first value stand."""
    key = (slot // KEY_ROW * channels * KEY_ROW + slot % KEY_ROW) * size
    return head + key, head + (PAGE + slot) * channels * size


def _float_store(scatter, store_row, size):
    @jit
    def store_head(k, v, head, slot, head_dim):
        """Store one head; returns the largest magnitudes in 16 lanes."""
        channels, peak = padded(head_dim), zeros_wide(1, 1)
        key, value = _places(head, slot, channels, size)
        for channel in range(0, channels, 16):
            left = head_dim - channel
            keys, values = load_wide_partial_f32(k + 4 * channel, left), load_wide_partial_f32(v + 4 * channel, left)
            scatter(key + KEY_ROW * size * channel, KEY_ROW * size, keys)
            store_row(value + size * channel, values)
            peak = maximum(peak, maximum(absolute(keys), absolute(values)))
        return peak

    return store_head


_store_f16 = _float_store(scatter_f16, store_f16, 2)
_store_f32 = _float_store(scatter_f32, store, 4)


@jit
def rotate(x, head_dim, out):
    """Rotate the f32 numbers of a head at `x`, and pad them at `out`, which may be the same place.

    This makes them `sqrt(length)` times as large: two rotations multiply by `length`.
    """
    length = _hadamard_length(head_dim)
    for channel in range(0, padded(head_dim), length):
        _hadamard(x + 4 * channel, head_dim - channel, length, out + 4 * channel)


@jit
def _hadamard_length(head_dim):
    """Channels that are rotated together: the greatest power of two that divides all, or `LONGEST`."""
    channels = padded(head_dim)
    return min(channels & -channels, LONGEST)


@jit
def _hadamard(x, left, length, out):
    """Rotate `length` channels, of which `left` are in memory and the others are 0."""
    for channel in range(0, length, 16):
        store(out + 4 * channel, hadamard_lanes(load_wide_partial_f32(x + 4 * channel, left - channel)))
    distance = 64
    while distance < 4 * length:
        for begin in range(out, out + 4 * length, 2 * distance):
            for low in range(begin, begin + distance, 64):
                a, b = load_line_f32(low), load_line_f32(low + distance)
                store(low, a + b)
                store(low + distance, a - b)
        distance *= 2


@jit
def _store_int8(k, v, head, slot, head_dim):
    channels, length, rotated = padded(head_dim), _hadamard_length(head_dim), stack_f32(LONGEST)
    key, value = _places(head, slot, channels, 1)
    key_scale, value_scale = _scale(k, head_dim, rotated), _scale(v, head_dim, rotated)
    scales = head + numbers_bytes(head_dim, 1) + 4 * slot
    put_f32(scales, key_scale / length)
    put_f32(scales + 4 * PAGE, value_scale / length)
    for begin in range(0, channels, length):
        _hadamard(k + 4 * begin, head_dim - begin, length, rotated)
        for channel in range(0, length, 16):
            codes = _codes(load_line_f32(rotated + 4 * channel), key_scale)
            scatter_i8(key + KEY_ROW * (begin + channel), KEY_ROW, codes)
        _hadamard(v + 4 * begin, head_dim - begin, length, rotated)
        for channel in range(0, length, 16):
            codes = _codes(load_line_f32(rotated + 4 * channel), value_scale)
            store_i8(value + begin + channel, codes)


@jit
def _scale(x, head_dim, rotated):
    """Scale of a head's codes; `rotated` is memory for `LONGEST` of its rotated numbers."""
    length, peak = _hadamard_length(head_dim), zeros_wide(1, 1)
    for begin in range(0, padded(head_dim), length):
        _hadamard(x + 4 * begin, head_dim - begin, length, rotated)
        for channel in range(0, length, 16):
            peak = maximum(peak, absolute(load_line_f32(rotated + 4 * channel)))
    return np.float32(max_lanes(peak) / 127.0)


@jit
def _codes(x, scale):
    return to_i32(round_even(x * splat_wide(1.0 / scale if scale > 0.0 else 0.0)))


def _widener(load, size):
    @jit
    def widen(head, head_dim, out):
        for number in range(0, 2 * PAGE * padded(head_dim), 16):
            store(out + 4 * number, load(head + size * number, zeros_wide(1, 1)))

    return widen


_widen_f16 = _widener(load_wide_f16, 2)
_widen_int8 = _widener(load_wide_i8, 1)


@jit
def widen(kind, head, head_dim, out):
    """Copy one head of a page of f16 or int8 as f32 numbers in the same order, the scales behind them."""
    if kind == F16:
        _widen_f16(head, head_dim, out)
        return
    _widen_int8(head, head_dim, out)
    scales, target = head + numbers_bytes(head_dim, 1), out + numbers_bytes(head_dim, 4)
    for place in range(0, SCALES_BYTES, 64):
        store(target + place, load_line_f32(scales + place))


@jit
def widened_bytes(head_dim):
    """Bytes of what `widen` writes at most."""
    return numbers_bytes(head_dim, 4) + SCALES_BYTES
