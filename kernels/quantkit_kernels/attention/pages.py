"""Pages of the KV cache: how their bytes are laid out, and the kernels that write them.

A page holds `PAGE` consecutive positions of one sequence, for all layers and KV heads. A layer begins at a byte offset
of its own, the same in every page, so layers may differ in heads and head sizes. Of each KV head, at `page + offset +
head * head_bytes`:

    keys          [padded head_dim / pair][PAGE positions][pair]   lanes are positions: no sums over lanes
    values        [PAGE / pair][padded v_head_dim][pair]           lanes are channels
    key scales    [PAGE] f32                                       of whole numbers
    value scales  [PAGE] f32                                       of whole numbers

Padded is rounded up to whole vectors of 16 numbers, and at least 32; the padding is zero. A pair is two whole numbers,
which an instruction multiplies at once: neighbouring channels of a key, or neighbouring positions of a value. f32 has
none. Both halves are read as one stream, keys then values, 16 KiB for int16 heads of 64 channels.

Numbers are int16 or int8 with one scale for each position and head, or f32 for the reference path. int16 is scaled as
`integers.py` says, and as exact as f16. int8 is scaled by `absmax / 127`.

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

from quantkit_kernels.attention.integers import codes, length_scale, value_scale
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    absolute,
    get_i64,
    hadamard_lanes,
    load_line_f32,
    load_wide_i8_as_i16,
    load_wide_partial_f32,
    max_lanes,
    maximum,
    prefetch_level2,
    put_f32,
    scatter_f32,
    scatter_i8,
    scatter_i16,
    scatter_pairs_i8,
    scatter_pairs_i16,
    stack_f32,
    store,
    zeros_wide,
)

PAGE = 64
"""Positions of a page."""
LONGEST = 256
"""Channels that are rotated together at most."""
SCALES_BYTES = 2 * 4 * PAGE
"""Scales of one head of a page of whole numbers."""
CODES = {"int16": 2, "int8": 1, "f32": 4}
"""The kinds of cache, the first by default, and their numbers in `Layer.kind`: bytes of a number of theirs."""
INT16, INT8, F32 = CODES.values()


class Layer(NamedTuple):
    """The heads of one layer in the pages."""

    kind: int
    """Of `CODES`."""
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
    return numbers_bytes(layer, layer.kind) + (0 if layer.kind == F32 else SCALES_BYTES)


def layer_bytes(kind: str, kv_heads: int, head_dim: int, v_head_dim: int) -> int:
    """Bytes of one layer in a page, a multiple of 64."""
    numbers = PAGE * (padded.py_func(head_dim) + padded.py_func(v_head_dim)) * CODES[kind]
    return kv_heads * (numbers + (0 if kind == "f32" else SCALES_BYTES))


@jit
def store_kv(layer, k, v, pages, position):
    """Write one token's keys and values, f32 rows of all heads, into its sequence's page."""
    step = head_bytes(layer)
    head = get_i64(pages + 8 * (position >> 6)) + layer.offset
    slot = position & 63
    for _ in range(layer.kv_heads):
        if layer.kind == INT16:
            _store_int16(layer, k, v, head, slot)
        elif layer.kind == INT8:
            _store_int8(layer, k, v, head, slot)
        else:
            _store_f32(layer, k, v, head, slot)
        k, v = k + 4 * layer.head_dim, v + 4 * layer.v_head_dim
        head += step


@jit
def prefetch_slots(layer, pages, position):
    """Prefetch what `store_kv` writes in pages of whole numbers: many lines, far from one another."""
    if layer.kind == F32:
        return
    size, head = layer.kind, get_i64(pages + 8 * (position // PAGE)) + layer.offset
    for _ in range(layer.kv_heads):
        key, value, scales = _pair_places(layer, head, position % PAGE, size)
        for channel in range(0, padded(layer.head_dim), 2):
            prefetch_level2(key + size * PAGE * channel)
        for place in range(value, value + 2 * size * padded(layer.v_head_dim), 64):
            prefetch_level2(place)
        prefetch_level2(scales)
        prefetch_level2(scales + 4 * PAGE)
        head += head_bytes(layer)


@jit
def _pair_places(layer, head, slot, size):
    """Where a position's first key and first value stand, and its scales, in a page of whole numbers."""
    value = head + key_bytes(layer, size) + size * (slot // 2 * padded(layer.v_head_dim) * 2 + slot % 2)
    return head + 2 * size * slot, value, head + numbers_bytes(layer, size) + 4 * slot


@jit
def _store_f32(layer, k, v, head, slot):
    key, value = head + 4 * slot, head + key_bytes(layer, 4) + 4 * slot * padded(layer.v_head_dim)
    for channel in range(0, padded(layer.head_dim), 16):
        keys = load_wide_partial_f32(k + 4 * channel, layer.head_dim - channel)
        scatter_f32(key + 4 * PAGE * channel, 4 * PAGE, keys)
    for channel in range(0, padded(layer.v_head_dim), 16):
        store(value + 4 * channel, load_wide_partial_f32(v + 4 * channel, layer.v_head_dim - channel))


@jit
def _store_int16(layer, k, v, head, slot):
    head_dim, v_head_dim = layer.head_dim, layer.v_head_dim
    key, value, scales = _pair_places(layer, head, slot, 2)
    key_scale, scale = length_scale(k, head_dim), value_scale(v, v_head_dim)
    put_f32(scales, key_scale)
    put_f32(scales + 4 * PAGE, scale)
    for channel in range(0, padded(head_dim), 16):
        keys = codes(load_wide_partial_f32(k + 4 * channel, head_dim - channel), key_scale)
        scatter_pairs_i16(key + 2 * PAGE * channel, 4 * PAGE, keys)
    for channel in range(0, padded(v_head_dim), 16):
        values = codes(load_wide_partial_f32(v + 4 * channel, v_head_dim - channel), scale)
        scatter_i16(value + 4 * channel, 4, values)


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
    key, value, scales = _pair_places(layer, head, slot, 1)
    key_scale, scale = _scale(k, head_dim, rotated), _scale(v, v_head_dim, rotated)
    length = _hadamard_length(head_dim)
    put_f32(scales, key_scale / length)
    for begin in range(0, padded(head_dim), length):
        _hadamard(k + 4 * begin, head_dim - begin, length, rotated)
        for channel in range(0, length, 16):
            keys = codes(load_line_f32(rotated + 4 * channel), key_scale)
            scatter_pairs_i8(key + PAGE * (begin + channel), 2 * PAGE, keys)
    length = _hadamard_length(v_head_dim)
    put_f32(scales + 4 * PAGE, scale / length)
    for begin in range(0, padded(v_head_dim), length):
        _hadamard(v + 4 * begin, v_head_dim - begin, length, rotated)
        for channel in range(0, length, 16):
            values = codes(load_line_f32(rotated + 4 * channel), scale)
            scatter_i8(value + 2 * (begin + channel), 2, values)


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
def widen(layer, head, out):
    """Copy the codes of one head of a page of int8 as int16, in the same order."""
    like = zeros_wide(1, 1)
    for number in range(0, numbers_bytes(layer, 1), 32):
        store(out + 2 * number, load_wide_i8_as_i16(head + number, like))
