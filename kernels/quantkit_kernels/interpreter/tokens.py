"""What steps ask of each token of a pass, written down from its chunks: positions, page tables, wanted tokens, spans.

Thread 0 does it before the others begin, so that Python describes a chunk and not each of its tokens.
"""

from __future__ import annotations

from quantkit_kernels.attention.operands import SPAN_TOKENS
from quantkit_kernels.attention.sharing import SPAN_BYTES
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.interpreter.records import CHUNK_BYTES, chunk_at, pass_at
from quantkit_kernels.simd import put_i64


@jit
def list_tokens(words):
    """Fill the tables of a pass, and its counts."""
    state = pass_at(words)
    token = wanted = spans = choices = 0
    for number in range(state.chunks):
        chunk = chunk_at(state.chunk_table + CHUNK_BYTES * number)
        for inside in range(0, chunk.tokens, SPAN_TOKENS):
            span = state.span_table + SPAN_BYTES * spans
            put_i64(span, token + inside)
            put_i64(span + 8, min(SPAN_TOKENS, chunk.tokens - inside))
            put_i64(span + 16, chunk.position + inside)
            put_i64(span + 24, chunk.pages)
            spans += 1
        for inside in range(chunk.tokens):
            put_i64(state.positions + 8 * (token + inside), chunk.position + inside)
            put_i64(state.pages + 8 * (token + inside), chunk.pages)
        for inside in range(chunk.tokens - chunk.wanted, chunk.tokens):
            put_i64(state.wanted_tokens + 8 * wanted, token + inside)
            wanted += 1
        token += chunk.tokens
        choices += chunk.choice != 0
    state.tokens, state.wanted, state.spans, state.choices = token, wanted, spans, choices
