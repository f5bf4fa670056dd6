"""The real-gated linear recurrent unit of Griffin: each channel keeps one number, which decays as its gate says.

For every channel and token, with gates `r` and `i` that are logistic functions of their inputs:

    a = exp(-8 softplus(p) r)
    h = a h + sqrt(1 - a²) i x

The first token of a sequence is not scaled: its `h` is `i x`. Tokens pass one after the other, in one fixed order of
arithmetic, so the bits do not depend on how a sequence is cut into chunks. A unit is `UNIT` channels; behind their
numbers stands a line that is not zero once there was a token.

De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", 2024
(arXiv:2402.19427).
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import SMALLEST, exp_negative, expm1_negative, sigmoid, softplus
from quantkit_kernels.simd import (
    clamp,
    fma,
    load_line_f32,
    load_wide_partial_f32,
    splat_wide,
    square_root,
    store,
    where_less,
)

UNIT = 16
"""Channels of a unit: one register."""
LINE = 4 * UNIT
"""Their bytes."""
SPEED = -8.0


@jit
def rg_lru(channels, weight, x, input_gate, recurrent_gate, out, state, tokens, first, last):
    """Units `first` to `last` of `channels`, for consecutive tokens of one sequence.

    All rows hold a number for each channel, `weight` is the address of `p`, f32 `[channels]`, padded to whole lines.
    """
    zero, one = splat_wide(0.0), splat_wide(1.0)
    for unit in range(first, last):
        place, memory, left = unit * LINE, state + 2 * LINE * unit, channels - unit * UNIT
        speed = softplus(load_line_f32(weight + place)) * splat_wide(SPEED)
        for token in range(tokens):
            r = sigmoid(_line(recurrent_gate.address + token * recurrent_gate.stride + place, left))
            i = sigmoid(_line(input_gate.address + token * input_gate.stride + place, left))
            value = _line(x.address + token * x.stride + place, left) * i
            power = clamp(speed * r, splat_wide(SMALLEST / 2), zero)
            share = square_root(zero - expm1_negative(power + power))
            share = where_less(zero, load_line_f32(memory + LINE), share, one)
            h = fma(exp_negative(power), load_line_f32(memory), value * share)
            store(memory, h)
            store(memory + LINE, one)
            store(out.address + token * out.stride + place, h)


@jit
def _line(address, left):
    """The numbers of a unit; those of channels that the layer does not have are zero."""
    if left < UNIT:
        return load_wide_partial_f32(address, left)
    return load_line_f32(address)
