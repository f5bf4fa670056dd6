"""Steps and passes as kernels see them: records at an address, with the fields of `layout.py`."""

from __future__ import annotations

from quantkit_kernels.attention.pages import Layer
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.layout import CHUNK, PART, PASS, STEP
from quantkit_kernels.simd import record_at

STEP_BYTES, CHUNK_BYTES = STEP.itemsize, CHUNK.itemsize
step_at, part_at = record_at(STEP), record_at(PART)
pass_at, chunk_at = record_at(PASS), record_at(CHUNK)


@jit
def row_at(rows, number, thread):
    """Address of a row of `layout.ROWS`."""
    return rows.address + number * rows.stride + thread * rows.thread_stride


@jit
def rows_of(step, token, thread):
    """Addresses of a token's row of the output and of the first two inputs."""
    return row_at(step.out, token, thread), row_at(step.a, token, thread), row_at(step.b, token, thread)


@jit
def row_count(step, now):
    """Rows that a step works on in a pass."""
    return (now.wanted if step.wanted else now.tokens) * step.per_token


@jit
def layer_of(step, state):
    """The layer of the KV cache that a step writes or reads."""
    return Layer(state.kv_kind, step.cache_offset, step.kv_heads, step.head_dim, step.v_head_dim)
