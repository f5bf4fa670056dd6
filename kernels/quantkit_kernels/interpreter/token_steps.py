"""The kernels of operations that treat every token by itself: one function for each, of the operation's name.

Each says which fields of the step go to which function of `rows/`. `dispatch.py` calls it, by the address in the step,
for one token after the other. `shared_steps.py` and `mixture.py` have the other operations.
"""

from __future__ import annotations

from quantkit_kernels.attention import pages
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.records import layer_of, part_at, pass_at, row_at, rows_of, step_at
from quantkit_kernels.linear import activations
from quantkit_kernels.rows import arithmetic, embedding, mlp, norms, rotary
from quantkit_kernels.rows.norms import Norm
from quantkit_kernels.simd import get_f32, get_i64


@jit(entry=True)
def embed(address, part, token):
    step, now = step_at(address), part_at(part)
    number = get_i64(pass_at(now.words).ids + 8 * token)
    out = row_at(step.out, token, now.thread)
    embedding.embed(step.kind, step.weight, step.row_scales, number, step.out_columns, out)


@jit(entry=True)
def embed_positions(address, part, token):
    step, now = step_at(address), part_at(part)
    number = get_i64(pass_at(now.words).positions + 8 * token) + step.position_offset
    out = row_at(step.out, token, now.thread)
    embedding.embed(step.kind, step.weight, step.row_scales, number, step.out_columns, out)


@jit(entry=True)
def scale(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    arithmetic.scale(a, step.factor, out, step.out_columns)


@jit(entry=True)
def scale_by_position(address, part, token):
    step, now = step_at(address), part_at(part)
    out, a, _ = rows_of(step, token, now.thread)
    position = get_i64(pass_at(now.words).positions + 8 * token) + step.position_offset
    arithmetic.scale_by_position(a, position, step.period, step.beta, out, step.out_columns)


@jit(entry=True)
def scale_columns(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    arithmetic.multiply(a, step.constant, out, step.out_columns)


@jit(entry=True)
def scale_rows(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    arithmetic.scale_parts(a, b, step.size, out, step.out_columns)


@jit(entry=True)
def scale_by_weight(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    if step.weight_columns == 1:
        arithmetic.scale(a, get_f32(step.weight), out, step.out_columns)
    else:
        arithmetic.multiply(a, step.weight, out, step.out_columns)


@jit(entry=True)
def add(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    arithmetic.add(a, b, out, step.out_columns)


@jit(entry=True)
def multiply(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    arithmetic.multiply(a, b, out, step.out_columns)


@jit(entry=True)
def clamp(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    arithmetic.clamp(a, step.limit, out, step.out_columns)


@jit(entry=True)
def softcap(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    arithmetic.softcap(a, step.limit, out, step.out_columns)


@jit(entry=True)
def slice(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    arithmetic.copy_columns(a, step.begin, step.end, out)


@jit(entry=True)
def append(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    arithmetic.append(a, b, out, step.parts, step.size, step.out_columns // step.parts - step.size)


@jit(entry=True)
def select(address, part, token):
    step, now = step_at(address), part_at(part)
    source = get_i64(pass_at(now.words).wanted_tokens + 8 * token)
    out, a = row_at(step.out, token, now.thread), row_at(step.a, source, now.thread)
    arithmetic.copy(a, out, step.out_columns)


@jit(entry=True)
def quantize(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    activations.quantize(a, step.in_columns, out)


@jit
def _norm(step):
    return Norm(step.weight, step.bias, step.weight_columns, step.size, step.eps, step.offset)


@jit(entry=True)
def rms_norm(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    norms.rms_norm(a, out, step.out_columns, _norm(step))


@jit(entry=True)
def layer_norm(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    norms.layer_norm(a, out, step.out_columns, _norm(step))


@jit(entry=True)
def match_rms(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    norms.match_rms(a, b, out, step.out_columns)


@jit(entry=True)
def sparsify(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    norms.sparsify(a, out, step.out_columns, step.factor)


@jit(entry=True)
def gated(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    mlp.gated(a, b, out, step.out_columns, step.activation)


@jit(entry=True)
def gated_clamped(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    mlp.gated_clamped(a, b, out, step.out_columns, step.alpha, step.limit, step.offset)


@jit(entry=True)
def activate(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    mlp.activate(a, out, step.out_columns, step.activation)


@jit(entry=True)
def xielu(address, part, token):
    step = step_at(address)
    out, a, _ = rows_of(step, token, part_at(part).thread)
    learned = mlp.Xielu(step.alpha_p, step.alpha_n, step.xielu_beta, step.xielu_eps)
    mlp.xielu(a, out, step.out_columns, learned)


@jit(entry=True)
def rotation(address, part, token):
    step, now = step_at(address), part_at(part)
    position = get_i64(pass_at(now.words).positions + 8 * token) + step.position_offset
    rotary.rotation(position, step.constant, step.out_columns >> 1, step.factor, row_at(step.out, token, now.thread))


@jit(entry=True)
def rope(address, part, token):
    step = step_at(address)
    out, a, b = rows_of(step, token, part_at(part).thread)
    if step.interleaved:
        rotary.rope_interleaved(a, b, out, step.out_columns, step.head_dim, step.begin, step.rotary_dim)
    else:
        rotary.rope(a, b, out, step.out_columns, step.head_dim, step.begin, step.rotary_dim)


@jit(entry=True)
def store_kv(address, part, token):
    step, now = step_at(address), part_at(part)
    state = pass_at(now.words)
    _, k, v = rows_of(step, token, now.thread)
    layer, following = layer_of(step, state), min(token + 1, now.tokens - 1)
    table, next_table = get_i64(state.pages + 8 * token), get_i64(state.pages + 8 * following)
    if next_table != table:  # of another sequence, whose page is in no cache yet
        pages.prefetch_slots(layer, next_table, get_i64(state.positions + 8 * following))
    pages.store_kv(layer, k, v, table, get_i64(state.positions + 8 * token))
