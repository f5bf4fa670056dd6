"""A causal depthwise convolution over the last few tokens: each channel by itself, with as many weights as it has taps.

    out[t] = activation(bias + w[0] x[t - taps + 1] + ... + w[taps - 1] x[t])

A sequence's state is what the next tokens still need: its last `taps - 1` inputs. A unit is `UNIT` channels, whose
state stands together, the earliest token first. Tokens of the same pass are read from where they are. Where there
are four taps, as in most models, the last inputs stay in registers.

`interpreter/recurrent.py` calls it; Poli et al., "Hyena Hierarchy", 2023, have such convolutions in a language model.
"""

from __future__ import annotations

from typing import NamedTuple

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.operands import Rows
from quantkit_kernels.rows.mlp import activated
from quantkit_kernels.simd import fma, load_line_f32, load_wide_partial_f32, store, zeros_wide

UNIT = 16
"""Channels of a unit: one register."""
LINE = 4 * UNIT
"""Their bytes."""


class Convolution(NamedTuple):
    """What the tokens meet."""

    weight: int
    """Address of f32 `[taps, channels]`, rows padded to whole lines."""
    bias: int
    """Address of f32 `[channels]`, padded likewise; 0 for none."""
    channels: int
    taps: int
    activation: int
    """Place in `interpreter.operations.ACTIVATIONS`."""


@jit
def short_conv(convolution, x, out, state, tokens, first, last):
    """Units `first` to `last` of consecutive tokens of one sequence.

    Parameters
    ----------
    convolution : Convolution
    x, out : Rows
        f32 rows `[tokens, channels]`; they may not share memory.
    state : int
        Address of f32 `[units, taps - 1, UNIT]`, which is advanced.
    tokens, first, last : int
    """
    past = convolution.taps - 1
    for unit in range(first, last):
        kept, place, left = state + unit * past * LINE, unit * LINE, convolution.channels - unit * UNIT
        source, target = Rows(x.address + place, x.stride), Rows(out.address + place, out.stride)
        if past == 3 and left >= UNIT:
            _four_taps(convolution, unit, source, target, kept, tokens)
        else:
            _any_taps(convolution, unit, source, target, kept, tokens)
            for number in range(past):
                store(kept + number * LINE, _input(source, kept, number + tokens - past, past, left))


@jit
def _bias(convolution, unit):
    """What the sums of a unit begin with."""
    return load_line_f32(convolution.bias + unit * LINE) if convolution.bias else zeros_wide(1, 1)


@jit
def _weight(convolution, unit, tap):
    """The weights of a unit for one tap."""
    stride = (convolution.channels + UNIT - 1) // UNIT * LINE
    return load_line_f32(convolution.weight + unit * LINE + tap * stride)


@jit
def _four_taps(convolution, unit, x, out, state, tokens):
    """The outputs of one whole unit, whose last inputs stay in registers; advances its state."""
    start = _bias(convolution, unit)
    u, v, w, z = (
        _weight(convolution, unit, 0),
        _weight(convolution, unit, 1),
        _weight(convolution, unit, 2),
        _weight(convolution, unit, 3),
    )
    a, b, c = load_line_f32(state), load_line_f32(state + LINE), load_line_f32(state + 2 * LINE)
    for token in range(tokens):
        d = load_line_f32(x.address + token * x.stride)
        y = fma(z, d, fma(w, c, fma(v, b, fma(u, a, start))))
        store(out.address + token * out.stride, activated(y, convolution.activation))
        a, b, c = b, c, d
    store(state, a)
    store(state + LINE, b)
    store(state + 2 * LINE, c)


@jit
def _any_taps(convolution, unit, x, out, state, tokens):
    """The outputs of one unit; its state stays as it is."""
    past, left = convolution.taps - 1, convolution.channels - unit * UNIT
    start = _bias(convolution, unit)
    for token in range(tokens):
        y = start
        for tap in range(convolution.taps):
            y = fma(_weight(convolution, unit, tap), _input(x, state, token + tap - past, past, left), y)
        store(out.address + token * out.stride, activated(y, convolution.activation))


@jit
def _input(x, state, token, past, left):
    """The input of a token, those before the first from the state; channels from `left` on are zero."""
    if token < 0:
        return load_line_f32(state + (past + token) * LINE)
    if left < UNIT:
        return load_wide_partial_f32(x.address + token * x.stride, left)
    return load_line_f32(x.address + token * x.stride)
