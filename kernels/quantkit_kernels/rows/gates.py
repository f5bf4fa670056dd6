"""The gated activation between the two products of an MLP. `functions.py` has the activations."""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import gelu, gelu_tanh, silu
from quantkit_kernels.simd import load_line_f32, store

SILU, GELU, GELU_TANH = range(3)
"""Positions in `quantkit.models.recorder.ACTIVATIONS` (a test compares)."""


@jit
def gated(gate, up, out, n, activation):
    """`out = activation(gate) * up`."""
    for place in range(0, 4 * n, 64):
        x = load_line_f32(gate + place)
        if activation == SILU:
            y = silu(x)
        elif activation == GELU:
            y = gelu(x)
        else:
            y = gelu_tanh(x)
        store(out + place, y * load_line_f32(up + place))
