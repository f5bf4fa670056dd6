"""Steps that treat every token by itself: which kernel an opcode stands for, and which fields of the step it takes.

`dispatch.py` hands tokens out and has the steps whose work is shared in other pieces; the kernels are those of `rows/`.
"""

from __future__ import annotations

from quantkit_kernels.attention.pages import store_kv
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.mixture import mixture_row
from quantkit_kernels.interpreter.operations import Opcode
from quantkit_kernels.interpreter.records import layer_of, pass_at, row_at, step_at
from quantkit_kernels.linear.activations import quantize
from quantkit_kernels.rows.arithmetic import (
    add,
    append,
    clamp,
    copy,
    copy_columns,
    multiply,
    scale,
    scale_by_position,
    softcap,
)
from quantkit_kernels.rows.embedding import embed
from quantkit_kernels.rows.mlp import Xielu, activate, gated, gated_clamped, xielu
from quantkit_kernels.rows.norms import Norm, layer_norm, rms_norm
from quantkit_kernels.rows.rotary import rope, rope_interleaved, rotation
from quantkit_kernels.simd import get_f32, get_i64


@jit
def token_step(address, words, thread, token):
    """One token of the step at `address`."""
    step = step_at(address)
    opcode, columns = step.opcode, step.out_columns
    out, a, b = row_at(step.out, token, thread), row_at(step.a, token, thread), row_at(step.b, token, thread)
    if opcode == Opcode.QUANTIZE:
        quantize(a, step.in_columns, out)
    elif opcode == Opcode.RMS_NORM:
        rms_norm(a, out, columns, _norm(step))
    elif opcode == Opcode.LAYER_NORM:
        layer_norm(a, out, columns, _norm(step))
    elif opcode == Opcode.ADD:
        add(a, b, out, columns)
    elif opcode == Opcode.MULTIPLY:
        multiply(a, b, out, columns)
    elif opcode == Opcode.SCALE:
        scale(a, step.factor, out, columns)
    elif opcode == Opcode.SCALE_COLUMNS:
        multiply(a, step.constant, out, columns)
    elif opcode == Opcode.SCALE_ROWS:
        scale(a, get_f32(b), out, columns)
    elif opcode == Opcode.CLAMP:
        clamp(a, step.limit, out, columns)
    elif opcode == Opcode.SOFTCAP:
        softcap(a, step.limit, out, columns)
    elif opcode == Opcode.SLICE:
        copy_columns(a, step.begin, step.end, out)
    elif opcode == Opcode.APPEND:
        append(a, b, out, step.parts, step.size, columns // step.parts - step.size)
    elif opcode == Opcode.GATED:
        gated(a, b, out, columns, step.activation)
    elif opcode == Opcode.GATED_CLAMPED:
        gated_clamped(a, b, out, columns, step.alpha, step.limit, step.offset)
    elif opcode == Opcode.ACTIVATE:
        activate(a, out, columns, step.activation)
    elif opcode == Opcode.XIELU:
        xielu(a, out, columns, Xielu(step.alpha_p, step.alpha_n, step.xielu_beta, step.xielu_eps))
    elif opcode == Opcode.ROPE and step.interleaved:
        rope_interleaved(a, b, out, columns, step.head_dim, step.begin, step.rotary_dim)
    elif opcode == Opcode.ROPE:
        rope(a, b, out, columns, step.head_dim, step.begin, step.rotary_dim)
    elif opcode == Opcode.ROUTE or opcode == Opcode.GATHER or opcode == Opcode.COMBINE:
        mixture_row(step, pass_at(words), thread, token)
    else:
        _batch_step(address, words, thread, token)


@jit
def _batch_step(address, words, thread, token):
    """As `token_step`, of the steps that read the batch: which token it is, where it stands, whose it is."""
    step, state = step_at(address), pass_at(words)
    opcode, columns = step.opcode, step.out_columns
    out, a, b = row_at(step.out, token, thread), row_at(step.a, token, thread), row_at(step.b, token, thread)
    if opcode == Opcode.SELECT:
        copy(row_at(step.a, get_i64(state.wanted_tokens + 8 * token), thread), out, columns)
        return
    position = get_i64(state.positions + 8 * token)
    if opcode == Opcode.EMBED:
        embed(step.kind, step.weight, step.row_scales, get_i64(state.ids + 8 * token), columns, out)
    elif opcode == Opcode.EMBED_POSITIONS:
        embed(step.kind, step.weight, step.row_scales, position + step.position_offset, columns, out)
    elif opcode == Opcode.ROTATION:
        rotation(position, step.constant, columns >> 1, step.factor, out)
    elif opcode == Opcode.SCALE_BY_POSITION:
        scale_by_position(a, position + step.position_offset, step.period, step.beta, out, columns)
    elif opcode == Opcode.STORE_KV:
        pages = get_i64(state.pages + 8 * token)
        if store_kv(layer_of(step, state), a, b, pages, position):
            state.saturated = 1


@jit
def _norm(step):
    return Norm(step.weight, step.bias, step.weight_columns, step.size, step.eps, step.offset)
