"""Pages of the KV cache: how their bytes are laid out, and the kernels that write them.

A page holds `PAGE` consecutive positions of one sequence, for all layers and KV heads. A layer begins at a byte offset
of its own, the same in every page, so layers may differ in heads and head sizes. Of each KV head, at `page + offset +
head * head_bytes`:

    keys          [PAGE / KEY_ROW][padded head_dim][KEY_ROW positions]   lanes are positions: no sums over lanes
    values        [PAGE][padded v_head_dim]                              lanes are channels
    key scales    [PAGE] f32                                             of int8 alone
    value scales  [PAGE] f32                                             of int8 alone

Padded is rounded up to whole vectors of 16 numbers, and at least 32; the padding is zero. A row of
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

from typing import NamedTuple

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


class Layer(NamedTuple):
    """The heads of one layer in the pages."""

    kind: int
    """`blocks.Kind.code` of the numbers."""
    offset: int
    """Bytes from the start of a page to the first head."""
    kv_heads: int
    head_dim: int
    """Channels of a key."""
    v_head_dim: int
    """Channels of a value."""


@jit
def padded(head_dim):
    """Channels of a row in the cache."""
    return max(32, (head_dim + 15) & ~15)


@jit
def key_bytes(layer, size):
    """Bytes of the keys of one head of a page, for numbers of `size` bytes."""
    return PAGE * padded(layer.head_dim) * size


@jit
def numbers_bytes(layer, size):
    """Bytes of the keys and values of one head of a page, for numbers of `size` bytes."""
    return PAGE * (padded(layer.head_dim) + padded(layer.v_head_dim)) * size


@jit
def head_bytes(layer):
    """Bytes of one head of a page."""
    if layer.kind == INT8:
        return numbers_bytes(layer, 1) + SCALES_BYTES
    return numbers_bytes(layer, 2 if layer.kind == F16 else 4)


def layer_bytes(kind: str, kv_heads: int, head_dim: int, v_head_dim: int) -> int:
    """Bytes of one layer in a page, a multiple of 64."""
    numbers = PAGE * (padded.py_func(head_dim) + padded.py_func(v_head_dim)) * SIZES[kind]
    return kv_heads * (numbers + (SCALES_BYTES if kind == "int8" else 0))


@jit
def store_kv(layer, k, v, pages, position):
    """Write one token's keys and values, f32 rows of all heads, into its sequence's page.

    Returns whether a number was beyond the range of f16, and stored as its largest.
    """
    step = head_bytes(layer)
    head = get_i64(pages + 8 * (position >> 6)) + layer.offset
    slot = position & 63
    peak = zeros_wide(1, 1)
    for _ in range(layer.kv_heads):
        if layer.kind == F16:
            peak = maximum(peak, _store_f16(layer, k, v, head, slot))
        elif layer.kind == INT8:
            _store_int8(layer, k, v, head, slot)
        else:
            _store_f32(layer, k, v, head, slot)
        k, v = k + 4 * layer.head_dim, v + 4 * layer.v_head_dim
        head += step
    return max_lanes(peak) > F16_MAX


@jit
def _places(layer, head, slot, size):
    """Where a position's first key and first value stand."""
    key = (slot // KEY_ROW * padded(layer.head_dim) * KEY_ROW + slot % KEY_ROW) * size
    return head + key, head + key_bytes(layer, size) + slot * padded(layer.v_head_dim) * size


def _float_store(scatter, store_row, size):
    @jit
    def store_head(layer, k, v, head, slot):
        """Store one head; returns the largest magnitudes in 16 lanes."""
        peak = zeros_wide(1, 1)
        key, value = _places(layer, head, slot, size)
        for channel in range(0, padded(layer.head_dim), 16):
            keys = load_wide_partial_f32(k + 4 * channel, layer.head_dim - channel)
            scatter(key + KEY_ROW * size * channel, KEY_ROW * size, keys)
            peak = maximum(peak, absolute(keys))
        for channel in range(0, padded(layer.v_head_dim), 16):
            values = load_wide_partial_f32(v + 4 * channel, layer.v_head_dim - channel)
            store_row(value + size * channel, values)
            peak = maximum(peak, absolute(values))
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
def _store_int8(layer, k, v, head, slot):
    head_dim, v_head_dim, rotated = layer.head_dim, layer.v_head_dim, stack_f32(LONGEST)
    key, value = _places(layer, head, slot, 1)
    key_scale, value_scale = _scale(k, head_dim, rotated), _scale(v, v_head_dim, rotated)
    scales = head + numbers_bytes(layer, 1) + 4 * slot
    length = _hadamard_length(head_dim)
    put_f32(scales, key_scale / length)
    for begin in range(0, padded(head_dim), length):
        _hadamard(k + 4 * begin, head_dim - begin, length, rotated)
        for channel in range(0, length, 16):
            codes = _codes(load_line_f32(rotated + 4 * channel), key_scale)
            scatter_i8(key + KEY_ROW * (begin + channel), KEY_ROW, codes)
    length = _hadamard_length(v_head_dim)
    put_f32(scales + 4 * PAGE, value_scale / length)
    for begin in range(0, padded(v_head_dim), length):
        _hadamard(v + 4 * begin, v_head_dim - begin, length, rotated)
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
    def widen(layer, head, out):
        for number in range(0, numbers_bytes(layer, 1), 16):
            store(out + 4 * number, load(head + size * number, zeros_wide(1, 1)))

    return widen


_widen_f16 = _widener(load_wide_f16, 2)
_widen_int8 = _widener(load_wide_i8, 1)


@jit
def widen(layer, head, out):
    """Copy one head of a page of f16 or int8 as f32 numbers in the same order, the scales behind them."""
    if layer.kind == F16:
        _widen_f16(layer, head, out)
        return
    _widen_int8(layer, head, out)
    scales, target = head + numbers_bytes(layer, 1), out + numbers_bytes(layer, 4)
    for place in range(0, SCALES_BYTES, 64):
        store(target + place, load_line_f32(scales + place))


@jit
def widened_bytes(layer):
    """Bytes of what `widen` writes at most."""
    return numbers_bytes(layer, 4) + SCALES_BYTES
