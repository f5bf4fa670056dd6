"""The kernels of operations that keep a state per sequence; `advance` shares their work out, as in `shared_steps.py`.

A state consists of units that need no other (`operations.State`), so pieces are pairs of a chunk, all new tokens of one
sequence, and a unit: how many there are, a step and the pass say. Who has a piece walks all tokens of the chunk with
it, in order. What goes round a state is done here as well, a unit at a time, when it is in the nearest cache anyway:
that of a new sequence is cleared, and where a sequence may be cut back later, the tokens that may go advance a copy.
For each operation there is a function of its name, which `advance` calls by the address in the step; `recurrent/`
computes.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.records import CHUNK_BYTES, chunk_at, part_at, pass_at, step_at
from quantkit_kernels.interpreter.threads import outcome, take_next
from quantkit_kernels.operands import Rows, from_token
from quantkit_kernels.recurrent import delta_rule as rules
from quantkit_kernels.recurrent import rg_lru as units
from quantkit_kernels.recurrent import selective_scan as selections
from quantkit_kernels.recurrent import short_conv as convolutions
from quantkit_kernels.recurrent import ssd as scans
from quantkit_kernels.simd import call, load_line_f32, store, zeros_wide

PIECES = 4
"""Of a chunk, for each thread: enough that threads finish together."""


@jit(entry=True)
def advance(address, counter, part):
    """The states of all sequences of a pass, in units of each."""
    step, now = step_at(address), part_at(part)
    units, table = step.units, pass_at(now.words).chunk_table
    pieces = now.chunks * units
    at_once = max(1, units // (PIECES * now.threads))
    turn = taken = 0
    while True:
        turn, first, last = take_next(counter, now, turn, pieces, 1, at_once)
        if first == last:
            return outcome(pieces, taken)
        taken += last - first
        while first < last:
            number, unit = first // units, first % units
            end = min(unit + last - first, units)
            _walk(address, table + CHUNK_BYTES * number, unit, end)
            first += end - unit


@jit
def _walk(address, chunk_address, first, last):
    """Units `first` to `last` of a sequence's state, through all tokens of a chunk."""
    step, chunk = step_at(address), chunk_at(chunk_address)
    begin, size = step.unit_bytes * first, step.unit_bytes * (last - first)
    state, ahead = chunk.state + step.state_offset, chunk.ahead + step.state_offset
    if chunk.fresh:
        for place in range(state + begin, state + begin + size, 64):
            store(place, zeros_wide(1, 1))
    if chunk.kept:
        call(step.advance, (address, state, chunk.first, chunk.kept, first, last))
    if chunk.kept < chunk.tokens:
        for place in range(begin, begin + size, 64):
            store(ahead + place, load_line_f32(state + place))
        left = chunk.tokens - chunk.kept
        call(step.advance, (address, ahead, chunk.first + chunk.kept, left, first, last))


@jit(entry=True)
def short_conv(address, state, token, tokens, first, last):
    """Units `first` to `last` of the step's state at `state`, through `tokens` tokens from `token` on."""
    step = step_at(address)
    x = from_token(Rows(step.a.address + 4 * step.begin, step.a.stride), token)
    out = from_token(Rows(step.out.address, step.out.stride), token)
    convolution = convolutions.Convolution(step.weight, step.bias, step.out_columns, step.taps, step.activation)
    convolutions.short_conv(convolution, x, out, state, tokens, first, last)


@jit(entry=True)
def ssd(address, state, token, tokens, first, last):
    """As `short_conv`."""
    step = step_at(address)
    layer = scans.Ssd(
        step.heads, step.head_dim, step.groups, step.state_size, step.a_log, step.dt_bias, step.skip, step.dt_min,
        step.dt_max,
    )  # fmt: skip
    x, dt = Rows(step.a.address, step.a.stride), Rows(step.b.address, step.b.stride)
    out = from_token(Rows(step.out.address, step.out.stride), token)
    scans.ssd(layer, from_token(x, token), from_token(dt, token), out, state, tokens, first, last)


@jit(entry=True)
def delta_rule(address, state, token, tokens, first, last):
    """As `short_conv`."""
    step = step_at(address)
    rule = rules.DeltaRule(
        step.key_heads, step.value_heads, step.key_dim, step.value_dim, step.factor, step.a_log, step.dt_bias
    )
    x, out = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    a, b = Rows(step.b.address, step.b.stride), Rows(step.c.address, step.c.stride)
    x, a, b, out = from_token(x, token), from_token(a, token), from_token(b, token), from_token(out, token)
    rules.delta_rule(rule, x, a, b, out, state, tokens, first, last)


@jit(entry=True)
def selective_scan(address, state, token, tokens, first, last):
    """As `short_conv`."""
    step = step_at(address)
    scan = selections.Scan(step.out_columns, step.state_size, step.a_log, step.skip)
    x, out = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    dt, bc = Rows(step.b.address, step.b.stride), Rows(step.c.address, step.c.stride)
    x, dt, bc, out = from_token(x, token), from_token(dt, token), from_token(bc, token), from_token(out, token)
    selections.selective_scan(scan, x, dt, bc, out, state, tokens, first, last)


@jit(entry=True)
def rg_lru(address, state, token, tokens, first, last):
    """As `short_conv`."""
    step = step_at(address)
    x, out = Rows(step.a.address, step.a.stride), Rows(step.out.address, step.out.stride)
    i, r = Rows(step.b.address, step.b.stride), Rows(step.c.address, step.c.stride)
    x, i, r, out = from_token(x, token), from_token(i, token), from_token(r, token), from_token(out, token)
    units.rg_lru(step.out_columns, step.weight, x, i, r, out, state, tokens, first, last)
