"""The layer of Mamba: each channel keeps a few numbers, which decay at rates of their own and take in its input.

For every channel and token, with a state `h` of `[size]`, a step `t = softplus(dt)` and rates `exp(A_log)`:

    h = exp(-exp(A_log) t) h + t x B
    y = C h + D x

All channels share `B` and `C`. Tokens pass one after the other, in one fixed order of arithmetic, so the bits do not
depend on how a sequence is cut into chunks. A unit is `UNIT` channels, whose state is `[size, UNIT]`.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023 (arXiv:2312.00752).
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.operands import from_token
from quantkit_kernels.rows.functions import exp, exp_negative, softplus
from quantkit_kernels.simd import (
    fma,
    get_f32,
    load_line_f32,
    load_wide_partial_f32,
    splat_wide,
    stack_f32,
    store,
)

UNIT = 16
"""Channels of a unit: one register."""
LINE = 4 * UNIT
"""Their bytes."""
RATES = 256 * UNIT
"""Numbers that a unit's rates are at most: `interpreter.operations.MOST_STATES` for each channel."""


class Scan(NamedTuple):
    """A layer: its sizes, and what it has learned."""

    channels: int
    size: int
    a_log: int
    """Address of f32 `[size, channels]`, rows padded to whole lines."""
    skip: int
    """Of `D`, f32 `[channels]`, padded likewise."""


@jit
def selective_scan(layer, x, dt, bc, out, state, tokens, first, last):
    """Units `first` to `last` of a layer, for consecutive tokens of one sequence.

    Rows of `x` and `dt` hold a number for each channel, those of `bc` first `B`, then `C`.
    """
    rates = stack_f32(RATES)
    stride = (layer.channels + UNIT - 1) // UNIT * LINE
    for unit in range(first, last):
        for number in range(layer.size):
            rate = exp(load_line_f32(layer.a_log + number * stride + unit * LINE))
            store(rates + number * LINE, splat_wide(0.0) - rate)
        left, skip = layer.channels - unit * UNIT, load_line_f32(layer.skip + unit * LINE)
        memory = state + unit * layer.size * LINE
        for token in range(tokens):
            place, b = token * x.stride + unit * LINE, from_token(bc, token).address
            value = _line(x.address + place, left)
            step = softplus(_line(dt.address + token * dt.stride + unit * LINE, left))
            taken, y = step * value, skip * value
            for number in range(0, 4 * layer.size, 4):
                h = memory + UNIT * number
                decay = exp_negative(step * load_line_f32(rates + UNIT * number))
                kept = fma(decay, load_line_f32(h), taken * splat_wide(get_f32(b + number)))
                store(h, kept)
                y = fma(kept, splat_wide(get_f32(b + 4 * layer.size + number)), y)
            store(out.address + token * out.stride + unit * LINE, y)


@jit
def _line(address, left):
    """The numbers of a unit; those of channels that the layer does not have are zero."""
    if left < UNIT:
        return load_wide_partial_f32(address, left)
    return load_line_f32(address)
