"""What each operation computes, in float64 numpy, written as plainly as it can be.

A function takes what the operation's row in `operations.py` names, in the order of the row: what it reads of the batch,
its inputs, its weights, its constant, and its parameters by name. Inputs are `[T, columns]` for the `T` tokens of one
sequence that begins at position 0. What keeps a state per sequence is given it behind its inputs, and advances it in
place: flat f32 numbers, zeros at first, of which it may use any; `recurrent.py` has such. Nothing here knows of pages,
threads or blocks; every kernel is measured against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit_kernels.interpreter.truth.functions import ACTIVATIONS, Ids, Matrix
from quantkit_kernels.interpreter.truth.recurrent import delta_rule as delta_rule
from quantkit_kernels.interpreter.truth.recurrent import rg_lru as rg_lru
from quantkit_kernels.interpreter.truth.recurrent import selective_scan as selective_scan
from quantkit_kernels.interpreter.truth.recurrent import short_conv as short_conv
from quantkit_kernels.interpreter.truth.recurrent import ssd as ssd

GROUP = 32
"""Columns of activations that share a scale."""
BLOCK = 128
"""Columns of logits that have one maximum."""


def embed(ids: Ids, table: Matrix) -> Matrix:
    """Rows of the table."""
    return table[ids]


def embed_positions(positions: Ids, table: Matrix, *, position_offset: int) -> Matrix:
    """Rows of the table, by position."""
    return table[positions + position_offset]


def scale(x: Matrix, *, factor: float) -> Matrix:
    """`x * factor`."""
    return x * factor


def add(a: Matrix, b: Matrix) -> Matrix:
    """`a + b`."""
    return a + b


def multiply(a: Matrix, b: Matrix) -> Matrix:
    """`a * b`."""
    return a * b


def scale_columns(x: Matrix, factors: Matrix) -> Matrix:
    """`x * factors`, a factor for each column."""
    return x * factors


def clamp(x: Matrix, *, limit: float) -> Matrix:
    """`min(max(x, -limit), limit)`."""
    return np.clip(x, -limit, limit)


def softcap(x: Matrix, *, limit: float) -> Matrix:
    """`limit * tanh(x / limit)`."""
    return limit * np.tanh(x / limit)


def scale_by_position(positions: Ids, x: Matrix, *, beta: float, period: int, position_offset: int) -> Matrix:
    """`x * (1 + beta * log(1 + floor((position + position_offset) / period)))`."""
    return x * (1 + beta * np.log1p((positions[:, None] + position_offset) // period))


def slice(x: Matrix, *, begin: int, end: int) -> Matrix:
    """Columns from `begin` up to `end`."""
    return x[:, begin:end]


def append(a: Matrix, b: Matrix, *, parts: int, size: int) -> Matrix:
    """Each of the `parts` parts of `a`, of `size` columns, and behind every one of them all columns of `b`."""
    pieces = [a.reshape(len(a), parts, size), np.repeat(b[:, None], parts, axis=1)]
    return np.concatenate(pieces, axis=-1).reshape(len(a), -1)


def rms_norm(
    x: Matrix, weight: Matrix | None = None, *, size: int, weight_columns: int, eps: float, offset: float
) -> Matrix:
    """`x / sqrt(mean(x²) + eps) * (weight + offset)`, over every `size` consecutive columns, a part.

    The weight has `size` columns, for every part the same, or those of all parts; `weight_columns` of 0 is none.
    """
    y = x.reshape(len(x), -1, size)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * (weight.reshape(weight_columns // size, size) + offset)
    return y.reshape(x.shape)


def layer_norm(
    x: Matrix,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
    *,
    size: int,
    weight_columns: int,
    eps: float,
    offset: float,
) -> Matrix:
    """`(x - mean(x)) / sqrt(variance(x) + eps) * (weight + offset) + bias`, parts and weights as of `rms_norm`."""
    y = x.reshape(len(x), -1, size)
    y = y - np.mean(y, axis=-1, keepdims=True)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * (weight.reshape(weight_columns // size, size) + offset)
    if bias is not None:
        y = y + bias.reshape(weight_columns // size, size)
    return y.reshape(x.shape)


def match_rms(x: Matrix, target: Matrix) -> Matrix:
    """`x` with the root mean square of `target`; a mean square below 1e-5 counts as that."""
    wanted, found = (np.square(rows).mean(axis=-1, keepdims=True) for rows in (target, x))
    return x * np.sqrt(wanted / np.maximum(found, 1e-5))


def sparsify(x: Matrix, *, factor: float) -> Matrix:
    """What `x` has beyond its mean and `factor` of its standard deviations, zero where it has less."""
    cutoff = x.mean(axis=-1, keepdims=True) + factor * x.std(axis=-1, keepdims=True)
    return np.maximum(x - cutoff, 0)


def gated(gate: Matrix, up: Matrix, *, activation: str) -> Matrix:
    """`activation(gate) * up`."""
    return ACTIVATIONS[activation](gate) * up


def gated_clamped(gate: Matrix, up: Matrix, *, alpha: float, limit: float, offset: float) -> Matrix:
    """`g / (1 + exp(-alpha g)) * (u + offset)`, `g = min(gate, limit)`, `u` is `up` within `-limit..limit`."""
    g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return g / (1 + np.exp(-alpha * g)) * (u + offset)


def activate(x: Matrix, *, activation: str) -> Matrix:
    """`activation(x)`."""
    return ACTIVATIONS[activation](x)


def xielu(x: Matrix, alpha_p: Matrix, alpha_n: Matrix, beta: Matrix, eps: Matrix) -> Matrix:
    """`p x² + beta x` for positive x, else `a (e^min(x, eps) - 1 - x) + beta x`; `p` is the softplus of `alpha_p`, `a`
    is beta and the softplus of `alpha_n`."""
    p, a = np.logaddexp(0, alpha_p), beta + np.logaddexp(0, alpha_n)
    return np.where(x > 0, p * x**2, a * (np.expm1(np.minimum(x, eps)) - x)) + beta * x


def rotation(positions: Ids, frequencies: Matrix, *, factor: float, position_offset: int) -> Matrix:
    """Cosines, then sines, of `(position + position_offset) * frequencies`, times `factor`."""
    angles = (positions[:, None] + position_offset) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * factor


def rope(x: Matrix, rotation: Matrix, *, head_dim: int, begin: int, rotary_dim: int, interleaved: bool) -> Matrix:
    """Rotate `rotary_dim` columns of every head, from `begin` on, by pairs: column `i` with `i + rotary_dim / 2`.

    Interleaved pairs are columns `2 i` and `2 i + 1`.
    """
    cosines, sines = np.split(rotation[:, None, :], 2, axis=-1)
    heads = x.reshape(len(x), -1, head_dim)
    before, turned, behind = np.split(heads, [begin, begin + rotary_dim], axis=-1)
    left, right = (turned[..., 0::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, axis=-1)
    pairs = [left * cosines - right * sines, right * cosines + left * sines]
    turned = np.stack(pairs, axis=-1).reshape(turned.shape) if interleaved else np.concatenate(pairs, axis=-1)
    return np.concatenate([before, turned, behind], axis=-1).reshape(x.shape)


def store_kv(k: Matrix, v: Matrix, *, kv_heads: int, head_dim: int, v_head_dim: int) -> Matrix:
    """The cache of one layer: keys, then values of each head -> `[T, kv_heads, head_dim + v_head_dim]`."""
    return np.concatenate([k.reshape(-1, kv_heads, head_dim), v.reshape(-1, kv_heads, v_head_dim)], axis=-1)


def attention(
    q: Matrix,
    cache: Matrix,
    sinks: Matrix | None = None,
    slopes: Matrix | None = None,
    *,
    kv_heads: int,
    heads_per_kv: int,
    head_dim: int,
    v_head_dim: int,
    scale: float,
    softcap: float,
    window: int,
    chunked: bool,
) -> Matrix:
    """Causal softmax attention; `heads_per_kv` query heads share a KV head; a soft cap or a window of 0 is none.

    A head's sink is a score that takes part in its softmax but has no value; by its slope, scores fall from position to
    position.
    """
    keys, values = np.split(cache, [head_dim], axis=-1)
    queries = q.reshape(len(q), kv_heads, heads_per_kv, head_dim)
    bottom = np.full((kv_heads, heads_per_kv, 1), -np.inf) if sinks is None else sinks.reshape(kv_heads, -1, 1)
    y = np.zeros((*queries.shape[:-1], v_head_dim))
    for token in range(len(q)):
        first = (token // window * window if chunked else max(0, token + 1 - window)) if window else 0
        for head in range(kv_heads):
            scores = queries[token, head] @ keys[first : token + 1, head].T * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if slopes is not None:
                distances = np.arange(first, token + 1) - token
                scores = scores + slopes.reshape(kv_heads, -1, 1)[head] * distances
            scores = np.concatenate([scores, bottom[head]], axis=-1)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            y[token, head] = weights[:, :-1] @ values[first : token + 1, head]
    return y.reshape(len(q), -1)


def select(wanted: Ids, x: Matrix) -> Matrix:
    """The rows of the tokens whose logits are wanted."""
    return x[wanted]


def quantize(x: Matrix) -> Matrix:
    """Round each group of 32 columns to `d * q`, `d = absmax / 127`, `q` a whole number, half to even."""
    tokens, columns = x.shape
    groups = np.pad(x, ((0, 0), (0, -columns % GROUP))).reshape(tokens, -1, GROUP)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    codes = np.round(np.divide(groups, step, out=np.zeros_like(groups), where=step > 0))
    return (codes * step).reshape(tokens, -1)[:, :columns]


def block_maxima(logits: Matrix) -> Matrix:
    """The greatest logit of each block of columns."""
    tokens, columns = logits.shape
    blocks = np.pad(logits, ((0, 0), (0, -columns % BLOCK)), constant_values=-np.inf).reshape(tokens, -1, BLOCK)
    return blocks.max(axis=2)


def choose(logits: Matrix, maxima: Matrix) -> Matrix:
    """The likeliest token of each row, the lowest id among equals: what a sequence gets that asks for nothing else."""
    return logits.argmax(axis=1, keepdims=True)


def linear(x: Matrix, weight: Matrix, bias: Matrix | None = None) -> Matrix:
    """`x @ weight.T (+ bias)`."""
    y = x @ weight.T
    return y if bias is None else y + bias


def route(
    logits: Matrix,
    bias: Matrix | None = None,
    *,
    experts: int,
    top_k: int,
    scoring: str,
    groups: int,
    chosen_groups: int,
    group_best: int,
    normalize: bool,
    factor: float,
    tolerance: float,
) -> Matrix:
    """The numbers of the chosen experts, best first, then their weights -> `[T, 2 * top_k]`."""
    scores = SCORINGS[scoring](logits)
    choice = scores if bias is None else scores + bias
    if groups > 1:
        parts = choice.reshape(len(choice), groups, -1).copy()
        best = np.sort(parts, axis=-1)[..., -group_best:].sum(axis=-1)
        dropped = np.argsort(-best, axis=-1, kind="stable")[:, chosen_groups:]
        np.put_along_axis(parts, dropped[..., None], -np.inf, axis=1)
        choice = parts.reshape(choice.shape)
    chosen = np.argsort(-choice, axis=-1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if scoring == "softmax_of_chosen":
        weights = _softmax(weights)
    elif scoring == "softmax_of_close":
        weights = np.stack([_close(scores, chosen[:, :place], tolerance) for place in range(top_k)], axis=1)
    total = weights.sum(axis=-1, keepdims=True) if normalize else 1.0
    return np.concatenate([chosen, weights / total * factor], axis=1)


def _close(scores: Matrix, chosen: Ids, tolerance: float) -> Matrix:
    """The softmax of the best score that is not chosen, among those that are close to it -> `[T]`."""
    left = scores.copy()
    np.put_along_axis(left, chosen, -np.inf, axis=-1)
    best = left.max(axis=-1, keepdims=True)
    far = best - scores > tolerance * np.maximum(np.abs(scores), best)
    return 1 / np.where(far, 0, np.exp(left - best)).sum(axis=-1)


def assign(routing: Matrix, *, experts: int, top_k: int) -> Ids:
    """Which expert each of a token's rows goes to -> `[T * top_k]`; the truth keeps rows in the order of tokens."""
    return routing[:, :top_k].astype(np.int64).reshape(-1)


def gather(x: Matrix, assigned: Ids, *, experts: int, top_k: int) -> Matrix:
    """`top_k` rows for each token."""
    return np.repeat(x, top_k, axis=0)


def expert_linear(x: Matrix, assigned: Ids, *weights: Matrix, experts: int) -> Matrix:
    """`x @ weight.T (+ bias)` with each row's own expert's weight; biases come behind the weights."""
    biases = weights[experts:] or (0.0,) * experts
    return np.stack([weights[e] @ row + biases[e] for e, row in zip(assigned, x, strict=True)])


def combine(y: Matrix, assigned: Ids, routing: Matrix, *, experts: int, top_k: int) -> Matrix:
    """The sum of a token's rows, times the weights of its experts."""
    return (y.reshape(-1, top_k, y.shape[1]) * routing[:, top_k:, None]).sum(axis=1)


def scale_rows(x: Matrix, factors: Matrix, *, size: int) -> Matrix:
    """`x` times a factor for every `size` columns of each token."""
    return x * np.repeat(factors, size, axis=1)


def scale_by_weight(x: Matrix, weight: Matrix, *, weight_columns: int) -> Matrix:
    """Each column of `x` times its own number, or all times one."""
    return x * weight


def scale_choice(routing: Matrix, weight: Matrix, *, top_k: int) -> Matrix:
    """Each weight of a chosen expert times the expert's own number."""
    chosen = routing[:, :top_k]
    return np.concatenate([chosen, routing[:, top_k:] * weight[chosen.astype(np.int64)]], axis=1)


def _softmax(x: Matrix) -> Matrix:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


SCORINGS: dict[str, Any] = {
    "softmax": _softmax,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softmax_of_chosen": lambda x: x,
    "softmax_of_close": lambda x: x,
}
"""What makes scores of a router's logits; `rows/routing.py` has the kernels, in this order."""
