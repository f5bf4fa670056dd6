"""Matrix products with a weight of any kind: `packed.py` and `plain.py` have one function for each."""

from __future__ import annotations

from quantkit_kernels.blocks import KINDS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.linear.packed import linear_int4, linear_int8
from quantkit_kernels.linear.plain import linear_bf16, linear_f16, linear_f32

F16, BF16, INT8, INT4 = (KINDS[name].code for name in ("f16", "bf16", "int8", "int4"))


@jit
def linear(matrix, kind, x, y, tokens, first, last):
    """Row tiles `first` to `last` of a matrix, for all tokens."""
    if kind == INT4:
        linear_int4(matrix, x, y, tokens, first, last)
    elif kind == INT8:
        linear_int8(matrix, x, y, tokens, first, last)
    elif kind == F16:
        linear_f16(matrix, x, y, tokens, first, last)
    elif kind == BF16:
        linear_bf16(matrix, x, y, tokens, first, last)
    else:
        linear_f32(matrix, x, y, tokens, first, last)
