"""A row of f32 read line by line, 16 columns at once. `choice.py` and `logits.py` read logits of any vocabulary so."""

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import blend_first, load_line_f32, load_wide_partial_f32, splat_wide


@jit
def line_at(x, place, end, filling):
    """16 columns at byte `place` of a row that ends at byte `end`; `filling` where it has no more."""
    if place + 64 <= end:
        return load_line_f32(x + place)
    left = (end - place) >> 2
    return blend_first(left, load_wide_partial_f32(x + place, left), splat_wide(filling))
