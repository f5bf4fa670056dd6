"""The truth of operations that keep a state per sequence, which they advance in place."""

from __future__ import annotations

import math

import numpy as np

from quantkit_kernels.interpreter.truth.functions import ACTIVATIONS, Matrix, State


def short_conv(
    x: Matrix,
    state: State,
    weight: Matrix,
    bias: Matrix | None = None,
    *,
    begin: int,
    end: int,
    taps: int,
    activation: str,
) -> Matrix:
    """Columns `begin` to `end`, each convolved with its own `taps` weights, the last one of which meets the token."""
    past, columns = taps - 1, end - begin
    kept = state[: past * columns].reshape(past, columns)
    inputs = np.concatenate([kept, x[:, begin:end]])
    weights = weight.reshape(columns, taps).T
    y = sum(weights[tap] * inputs[tap : tap + len(x)] for tap in range(taps))
    kept[:] = inputs[len(x) :]
    return ACTIVATIONS[activation](y if bias is None else y + bias)


def ssd(
    x: Matrix,
    dt: Matrix,
    state: State,
    a_log: Matrix,
    dt_bias: Matrix,
    skip: Matrix,
    *,
    heads: int,
    head_dim: int,
    groups: int,
    state_size: int,
    dt_min: float,
    dt_max: float,
) -> Matrix:
    """Mamba-2: `h = exp(-exp(a_log) t) h + (t x) B^T`, `y = h C + skip x`, for each head; `h` is `[head_dim, size]`.

    `t` is `softplus(dt + dt_bias)` within `dt_min..dt_max`. Columns of `x`: those of all heads, then `B` of all groups
    of heads, then `C`.
    """
    width, shape = heads * head_dim, (len(x), groups, state_size)
    inputs = x[:, :width].reshape(len(x), heads, head_dim)
    b, c = (np.repeat(part.reshape(shape), heads // groups, 1) for part in np.split(x[:, width:], 2, 1))
    t = np.clip(np.logaddexp(0, dt + dt_bias), dt_min, dt_max)[:, :, None]
    h = state[: width * state_size].reshape(heads, head_dim, state_size).astype(np.float64)
    y = np.empty_like(inputs)
    for token in range(len(x)):
        decay = np.exp(-np.exp(a_log)[:, None] * t[token])[..., None]
        h = decay * h + (t[token] * inputs[token])[..., None] * b[token][:, None]
        y[token] = (h @ c[token][..., None])[..., 0] + skip[:, None] * inputs[token]
    state[: width * state_size] = h.reshape(-1)
    return y.reshape(len(x), -1)


def delta_rule(
    x: Matrix,
    a: Matrix,
    b: Matrix,
    state: State,
    a_log: Matrix,
    dt_bias: Matrix,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    factor: float,
) -> Matrix:
    """The gated delta rule: `S = decay S`, `S = S + k^T rate (v - k S)`, `y = q S / sqrt(key_dim)`, for each head.

    `S` is `[key_dim, value_dim]`; `decay` is `exp(-exp(a_log) softplus(a + dt_bias))`, `rate` is `factor` times the
    logistic function of `b`. Columns of `x`: queries of all heads, keys, values; queries and keys get length 1.
    """
    keys, count = key_heads * key_dim, value_heads * key_dim * value_dim
    q, k = (part.reshape(len(x), key_heads, key_dim) for part in np.split(x[:, : 2 * keys], 2, axis=1))
    q, k = (part / np.sqrt((part**2).sum(axis=-1, keepdims=True) + 1e-6) for part in (q, k))
    q, k = (np.repeat(part, value_heads // key_heads, axis=1) for part in (q / math.sqrt(key_dim), k))
    v = x[:, 2 * keys :].reshape(len(x), value_heads, value_dim)
    decay, rate = np.exp(-np.exp(a_log) * np.logaddexp(0, a + dt_bias)), factor / (1 + np.exp(-b))
    s = state[:count].reshape(value_heads, key_dim, value_dim).astype(np.float64)
    y = np.empty_like(v)
    for token in range(len(x)):
        s = s * decay[token][:, None, None]
        delta = rate[token][:, None] * (v[token] - np.einsum("hk,hkv->hv", k[token], s))
        s = s + k[token][..., None] * delta[:, None]
        y[token] = np.einsum("hk,hkv->hv", q[token], s)
    state[:count] = s.reshape(-1)
    return y.reshape(len(x), -1)


def rg_lru(x: Matrix, input_gate: Matrix, recurrent_gate: Matrix, state: State, weight: Matrix) -> Matrix:
    """Griffin: `h = a h + sqrt(1 - a²) i x`, `a = exp(-8 softplus(weight) r)`, for each channel; at first `h = i x`.

    `i` and `r` are logistic functions of the gates; behind each channel's number stands whether there was a token.
    """
    h, begun = state[: 2 * x.shape[1]].reshape(2, -1)
    i, r = 1 / (1 + np.exp(-input_gate)), 1 / (1 + np.exp(-recurrent_gate))
    power, y = -8 * np.logaddexp(0, weight) * r, i * x
    for token in range(len(x)):
        if begun.any():
            y[token] = np.exp(power[token]) * h + np.sqrt(-np.expm1(2 * power[token])) * y[token]
        h[:], begun[:] = y[token], 1
    return y


def selective_scan(
    x: Matrix, dt: Matrix, bc: Matrix, state: State, a_log: Matrix, skip: Matrix, *, state_size: int
) -> Matrix:
    """Mamba: `h = exp(-exp(a_log) t) h + t x B`, `y = C h + skip x`, `t = softplus(dt)`, for each channel.

    `h` is `[state_size]`; columns of `bc`: `B`, then `C`, which all channels share.
    """
    b, c, t = bc[:, :state_size], bc[:, state_size:], np.logaddexp(0, dt)
    kept = state[: x.shape[1] * state_size].reshape(-1, state_size)
    h, y = kept.astype(np.float64), skip * x
    for token in range(len(x)):
        h = np.exp(-np.exp(a_log) * t[token][:, None]) * h + (t * x)[token][:, None] * b[token]
        y[token] += h @ c[token]
    kept[:] = h
    return y
