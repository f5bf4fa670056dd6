"""Attention of many sequences at once: each gets the bits that it gets alone, whichever thread begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_cache import KV_HEADS, Cache, Floats, Variant, padded, random_tokens, rows_of
from quantkit_kernels.attention import operands, sharing
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.threads import Taker, tag_of

HEADS_PER_KV, HEAD_DIM = 3, 64
LENGTHS = [64, 1, 15, 129, 16, 17, 32, 300, 33, 63, 65, 96, 97, 128, 161, 31]
"""Positions of each sequence: around every number of them that kernels take at once."""
SCALE: Any = np.float32(HEAD_DIM**-0.5)
NO_CAP: Any = np.float32(0)


@jit(entry=True)
def attend_batch(heads, q, out, tokens, spans, span_table, counters, thread, threads, partials, scratch):
    """All of a batch, by one thread, which finds those of the others late; returns how many pieces are left."""
    pieces = sharing.pieces_of(heads, tokens, spans, span_table, threads, partials)
    now = Taker(thread, threads, tag_of(1), 8)
    return pieces.count - sharing.attend(heads, q, out, span_table, pieces, counters, now, scratch)


def attend_together(caches: list[Cache], queries: list[Floats], thread: int, threads: int) -> list[Floats]:
    """Attention of the last tokens of some sequences: q f32 [tokens, heads, head_dim] of each, and as much back."""
    q = np.concatenate(queries)
    rows, out = padded(q), np.full((len(q), q[0].size), np.nan, np.float32)
    counts = [len(each) for each in queries]
    firsts = np.cumsum([0, *counts])
    spans = np.array(
        [
            (first, count, length - count, cache.table.ctypes.data)
            for first, count, length, cache in zip(firsts, counts, LENGTHS, caches, strict=False)
        ],
        np.int64,
    )
    counters = np.zeros(threads, np.int64)
    scratch = np.full(operands.scratch_bytes(HEADS_PER_KV, HEAD_DIM, HEAD_DIM) // 4, np.nan, np.float32)
    partials = np.zeros(sharing.partials_bytes(threads), np.uint8)
    heads = operands.Heads(caches[0].layer, HEADS_PER_KV, SCALE, NO_CAP, 0, 0, 0, 0)
    left = attend_batch(
        heads, rows_of(rows), rows_of(out), len(q), len(spans), spans.ctypes.data, counters.ctypes.data, thread,
        threads, partials.ctypes.data, scratch.ctypes.data,
    )  # fmt: skip
    assert left == 0
    return np.split(out.reshape(q.shape), firsts[1:-1])


@pytest.mark.parametrize("kind", ["int16", "int8", "f32"])
@pytest.mark.parametrize("newest", [1, 2])
def test_same_bits_as_alone(kind: str, newest: int) -> None:
    """`newest`: query tokens of a sequence at most."""
    caches: list[Cache] = []
    queries: list[Floats] = []
    alone: list[Floats] = []
    for seed, length in enumerate(LENGTHS):
        q, k, v = random_tokens(length, HEADS_PER_KV, HEAD_DIM, seed=seed)
        cache = Cache(kind, length, HEAD_DIM)
        cache.store(k, v, 0)
        last = q[-newest:]
        caches.append(cache)
        queries.append(last)
        alone.append(cache.attend(last, length - len(last), Variant(scale=float(SCALE))))
    assert KV_HEADS * len(LENGTHS) >= sharing.SPLIT_BELOW * 5  # pairs of all go to threads as they are
    for thread, threads in ((0, 1), (0, 2), (1, 2), (4, 5)):
        got = attend_together(caches, queries, thread, threads)
        assert [each.tobytes() for each in got] == [each.tobytes() for each in alone]
