"""What stands between the products of an MLP: an activation, gated or not. `functions.py` has the functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import (
    SMALLEST,
    expm1_negative,
    gelu,
    gelu_tanh,
    quick_gelu,
    relu,
    relu2,
    sigmoid,
    silu,
    swish,
)
from quantkit_kernels.simd import clamp, get_f32, load_line_f32, splat_wide, store, where_less

SILU, GELU, GELU_TANH, QUICK_GELU, SIGMOID, RELU, RELU2, IDENTITY = range(8)
"""Positions in `interpreter.operations.ACTIVATIONS` (a test compares)."""


class Xielu(NamedTuple):
    """Where the numbers of xIELU stand: addresses of an f32 each."""

    alpha_p: int
    alpha_n: int
    beta: int
    eps: int


@jit
def activate(x, out, n, activation):
    """`out = activation(x)`."""
    for place in range(0, 4 * n, 64):
        store(out + place, activated(load_line_f32(x + place), activation))


@jit
def gated(gate, up, out, n, activation):
    """`out = activation(gate) * up`."""
    for place in range(0, 4 * n, 64):
        store(out + place, activated(load_line_f32(gate + place), activation) * load_line_f32(up + place))


@jit
def gated_clamped(gate, up, out, n, alpha, limit, offset):
    """`out = g / (1 + exp(-alpha g)) * (u + offset)`, `g = min(gate, limit)`, `u` is `up` within `-limit..limit`."""
    low, high, factors, offsets = splat_wide(-limit), splat_wide(limit), splat_wide(alpha), splat_wide(offset)
    for place in range(0, 4 * n, 64):
        g = load_line_f32(gate + place)
        g = where_less(high, g, high, g)
        u = clamp(load_line_f32(up + place), low, high)
        store(out + place, swish(g, factors) * (u + offsets))


@jit
def activated(x, activation):
    """`activation(x)` of one register."""
    if activation == SILU:
        return silu(x)
    if activation == GELU:
        return gelu(x)
    if activation == GELU_TANH:
        return gelu_tanh(x)
    if activation == QUICK_GELU:
        return quick_gelu(x)
    if activation == SIGMOID:
        return sigmoid(x)
    if activation == RELU:
        return relu(x)
    if activation == RELU2:
        return relu2(x)
    return x


@jit
def xielu(x, out, n, numbers):
    """xIELU (Huang and Schlag, arXiv:2411.13010).

    `p * x**2 + beta * x` for x > 0, else `a * (e**min(x, eps) - 1 - x) + beta * x`, with `p = softplus(alpha_p)` and
    `a = beta + softplus(alpha_n)`.
    """
    positive = splat_wide(_softplus(get_f32(numbers.alpha_p)))
    negative = splat_wide(get_f32(numbers.beta) + _softplus(get_f32(numbers.alpha_n)))
    beta, eps = splat_wide(get_f32(numbers.beta)), splat_wide(get_f32(numbers.eps))
    zero, lowest = splat_wide(0.0), splat_wide(SMALLEST)
    for place in range(0, 4 * n, 64):
        v = load_line_f32(x + place)
        curve = (expm1_negative(clamp(v, lowest, eps)) - v) * negative
        store(out + place, where_less(zero, v, positive * v * v, curve) + beta * v)


@jit
def _softplus(x):
    """log(1 + e**x), f32."""
    return np.float32(max(x, 0.0) + math.log(1.0 + math.exp(-abs(x))))
