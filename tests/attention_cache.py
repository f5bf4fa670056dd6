"""Attention of random tokens over a paged cache, for tests: the kernels, their truth in float64, and what caches round.

Pages are full of NaN before anything is stored, so a position that nobody has written cannot leak unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.attention import operands, sharing
from quantkit_kernels.attention import pages as kv_pages
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.threads import Taker, tag_of
from quantkit_kernels.operands import Rows, from_token

Floats = NDArray[np.float32]

LAYER, LAYERS, KV_HEADS = 1, 2, 2
SPAN = operands.SPAN_TOKENS


class Variant(NamedTuple):
    """How scores become weights, as in `operands.Heads`; `sinks` and `slopes` are repeated for all heads."""

    scale: float = 1.0
    softcap: float = 0.0
    sinks: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()
    window: int = 0
    chunked: bool = False

    def of_heads(self, heads: int) -> Floats:
        """The sink of each head, f32 [heads]: without sinks one that weighs nothing."""
        return np.resize(np.array(self.sinks or [-np.inf], np.float32), heads)

    def slopes_of(self, heads: int) -> Floats:
        """By how much the scores of each head fall, f32 [heads]."""
        return np.resize(np.array(self.slopes or [0], np.float32), heads)


@jit(entry=True)
def store_all(layer, k, v, tokens, position, pages):
    for token in range(tokens):
        keys, values = from_token(k, token).address, from_token(v, token).address
        kv_pages.store_kv(layer, keys, values, pages, position + token)


@jit(entry=True)
def attend_all(heads, q, out, tokens, span, counter, threads, partials, scratch):
    """Returns how many pieces are left, which should be none."""
    pieces = sharing.pieces_of(heads, tokens, 1, span, threads, partials)
    now = Taker(0, 1, tag_of(1), 8)
    return pieces.count - sharing.attend(heads, q, out, span, pieces, counter, now, scratch)


class Cache:
    """Pages of one sequence, in no order of addresses."""

    def __init__(self, kind: str, length: int, head_dim: int, v_head_dim: int | None = None) -> None:
        v_head_dim = v_head_dim or head_dim
        count = -(-length // kv_pages.PAGE)
        size = kv_pages.layer_bytes(kind, KV_HEADS, head_dim, v_head_dim)
        self.layer = kv_pages.Layer(kv_pages.CODES[kind], LAYER * size, KV_HEADS, head_dim, v_head_dim)
        # Whole numbers have no NaN, but their scales have: these bytes are NaN as f32.
        self.pages = np.full((count, LAYERS * size), 0xFF, np.uint8)
        self.table = np.array([page.ctypes.data for page in self.pages[::-1]], np.int64)

    def store(self, k: Floats, v: Floats, position: int) -> None:
        """k, v: f32 [tokens, KV_HEADS, head_dim or v_head_dim]."""
        keys, values = padded(k), padded(v)
        store_all(self.layer, rows_of(keys), rows_of(values), len(k), position, self.table.ctypes.data)

    def attend(self, q: Floats, position: int, variant: Variant, threads: int = 0) -> Floats:
        """q: f32 [tokens, heads, head_dim] -> [tokens, heads, v_head_dim]. Threads that share the work take turns."""
        rows, heads_per_kv = padded(q), q.shape[1] // KV_HEADS
        head_dim, v_head_dim = self.layer.head_dim, self.layer.v_head_dim
        columns = q.shape[1] * v_head_dim
        out = np.full((len(q), -(-columns // 16) * 16), 12345, np.float32)
        span = np.array([0, len(q), position, self.table.ctypes.data], np.int64)
        counter = np.zeros(1, np.int64)
        scratch = np.full(operands.scratch_bytes(heads_per_kv, head_dim, v_head_dim) // 4, np.nan, np.float32)
        partials = np.zeros(sharing.partials_bytes(threads), np.uint8)
        sinks = variant.of_heads(q.shape[1])
        scale: Any = np.float32(variant.scale)
        softcap: Any = np.float32(variant.softcap)
        slopes = variant.slopes_of(q.shape[1])
        sinks_at = sinks.ctypes.data if variant.sinks else 0
        slopes_at = slopes.ctypes.data if variant.slopes else 0
        heads = operands.Heads(
            self.layer, heads_per_kv, scale, softcap, sinks_at, slopes_at, variant.window, int(variant.chunked)
        )
        left = attend_all(
            heads, rows_of(rows), rows_of(out), len(q), span.ctypes.data, counter.ctypes.data, threads,
            partials.ctypes.data, scratch.ctypes.data,
        )  # fmt: skip
        assert left == 0
        assert (out[:, columns:] == 12345).all(), "wrote past the last head"
        return out[:, :columns].reshape(*q.shape[:2], v_head_dim)


def rows_of(array: Floats) -> Rows:
    return Rows(array.ctypes.data, array.strides[0])


def padded(x: Floats) -> Floats:
    """Rows of a multiple of 16 columns, the padding NaN."""
    rows = np.full((len(x), -(-x[0].size // 16) * 16), np.nan, np.float32)
    rows[:, : x[0].size] = x.reshape(len(x), -1)
    return rows


def random_tokens(
    length: int, heads_per_kv: int, head_dim: int, v_head_dim: int | None = None, seed: int = 0
) -> list[Floats]:
    """q, k, v whose numbers are multiples of 1/64: the same on every machine, exact in f16."""
    rng = np.random.default_rng(seed)
    shapes = ((KV_HEADS * heads_per_kv, head_dim), (KV_HEADS, head_dim), (KV_HEADS, v_head_dim or head_dim))
    return [(rng.integers(-128, 129, (length, *shape)) / 64).astype(np.float32) for shape in shapes]


def in_spans(
    kind: str, q: Floats, k: Floats, v: Floats, lengths: Sequence[int], threads: int = 0, **fields: Any
) -> Floats:
    """Store and attend span after span; `lengths` is repeated until all tokens are done. `threads` share the work."""
    cache = Cache(kind, len(q), q.shape[2], v.shape[2])
    out: list[Floats] = []
    position = 0
    while position < len(q):
        end = min(position + min(lengths[len(out) % len(lengths)], SPAN), len(q))
        cache.store(k[position:end], v[position:end], position)
        out.append(cache.attend(q[position:end], position, Variant(**fields), threads))
        position = end
    return np.concatenate(out)


def exact(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], **fields: Any) -> NDArray[np.float64]:
    """Attention in float64."""
    variant, heads_per_kv = Variant(**fields), q.shape[1] // KV_HEADS
    q, k, v = (x.astype(np.float64) for x in (q, np.repeat(k, heads_per_kv, 1), np.repeat(v, heads_per_kv, 1)))
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) * np.float32(variant.scale)
    if variant.softcap:
        scores = variant.softcap * np.tanh(scores / variant.softcap)
    i, j = np.indices(scores.shape[1:])
    scores += variant.slopes_of(len(q))[:, None, None] * (j - i)
    if variant.window:
        first = i // variant.window * variant.window if variant.chunked else i - variant.window + 1
        scores[:, j < first] = -np.inf
    scores[:, j > i] = -np.inf
    sinks = np.broadcast_to(variant.of_heads(len(q))[:, None, None], (*scores.shape[:2], 1))
    scores = np.concatenate([scores, sinks], 2)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    return (weights[..., :-1] / weights.sum(2, keepdims=True) @ v).transpose(1, 0, 2)


def hadamard_length(channels: int) -> int:
    """Channels that an int8 cache rotates together."""
    return min(channels & -channels, kv_pages.LONGEST)


def rotated(x: Floats) -> Floats:
    """Heads as an int8 cache rotates them, the padding 0; in f32, with the sums in its order."""
    y = np.zeros((*x.shape[:-1], max(32, -(-x.shape[-1] // 16) * 16)), np.float32)
    y[..., : x.shape[-1]] = x
    apart = 1
    while apart < hadamard_length(y.shape[-1]):
        pairs = y.reshape(*x.shape[:-1], -1, 2, apart)
        y = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(y.shape)
        apart *= 2
    return y


def rounded(x: Floats) -> NDArray[np.float64]:
    """What an int8 cache keeps of keys or values [tokens, heads, head_dim]."""
    y = rotated(x)
    scale = np.abs(y).max(2, keepdims=True) / np.float32(127)
    y = np.round(y * (np.float32(1) / np.where(scale > 0, scale, np.float32(1)))).astype(np.float64) * scale
    basis = rotated(np.eye(y.shape[-1], dtype=np.float32)).astype(np.float64)
    return (y @ basis / hadamard_length(y.shape[-1]))[..., : x.shape[-1]]


def kept(kind: str, k: Floats, v: Floats) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a cache keeps of `random_tokens`."""
    return (rounded(k), rounded(v)) if kind == "int8" else (k, v)
