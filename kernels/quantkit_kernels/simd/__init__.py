"""SIMD vector types for numba: the only package that knows LLVM and the instruction set.

A `Vec` is a small grid of registers, `rows x tokens`, that lives in CPU registers as a numba value. Operations
broadcast over the grid as numpy does over arrays: `fma(w, x, acc)` with `w` of 2 x 1, `x` of 1 x 4 and `acc` of 2 x 4
registers is eight instructions. So a micro-kernel is written once, and the type of its accumulator says how it is
blocked. Where a function takes `like`, its result has the grid of that vector. Addresses are int64.

`vectors.py` defines the type; `memory.py` loads and stores; `arithmetic.py` computes; `codes.py` multiplies packed
codes with the instruction set that `isa.py` chose from `instruction_sets.py` and `check.py` compared with numpy;
`scalars.py` has single numbers, records, atomics and what threads need of the system. `registers.py` and what it is
imported by know LLVM alone, the others numba too. Kernels import from here alone, before numba is imported: the names
stand for functions that numba finds when it compiles them (`compile/deferred.py`). `compile/jit.py` has the decorator.
"""

from __future__ import annotations

from typing import Any

from quantkit_kernels.compile.deferred import deferred

from .isa import I8_PREFETCH, I8_ROWS, ISA, MINS_APART, PLANE_ROWS, TILES, TOKENS, U4_ROWS

_MODULES = {
    "absolute": "arithmetic",
    "add_section_u": "codes",
    "add_to_exponent": "arithmetic",
    "atomic_add": "scalars",
    "atomic_load": "scalars",
    "atomic_store": "scalars",
    "blend_first": "arithmetic",
    "broadcast_dwords": "memory",
    "broadcast_f32": "memory",
    "call": "scalars",
    "clamp": "arithmetic",
    "codes_i8": "codes",
    "compare_exchange": "scalars",
    "copysign": "arithmetic",
    "cpu_relax": "scalars",
    "dot_i16_outer": "codes",
    "dot_i8": "codes",
    "dot_u": "codes",
    "even_lanes": "arithmetic",
    "fma": "arithmetic",
    "fma_outer": "arithmetic",
    "get_f32": "scalars",
    "get_i32": "scalars",
    "get_i64": "scalars",
    "get_i8": "scalars",
    "get_u8": "scalars",
    "hadamard_lanes": "arithmetic",
    "high_nibbles": "codes",
    "high_u5": "codes",
    "high_u6": "codes",
    "interleave": "arithmetic",
    "lane_numbers": "arithmetic",
    "larger": "arithmetic",
    "load_bf16": "memory",
    "load_codes_i8": "codes",
    "load_codes_u4": "codes",
    "load_codes_u5": "codes",
    "load_codes_u6": "codes",
    "load_f16": "memory",
    "load_f32": "memory",
    "load_grid": "memory",
    "load_i32": "memory",
    "load_line_f32": "memory",
    "load_partial_f32": "memory",
    "load_rows_bf16": "memory",
    "load_rows_bytes": "memory",
    "load_rows_f16": "memory",
    "load_rows_f32": "memory",
    "load_rows_i8": "memory",
    "load_rows_partial_bf16": "memory",
    "load_rows_partial_f16": "memory",
    "load_rows_partial_f32": "memory",
    "load_scales_f32": "codes",
    "load_scales_u": "codes",
    "load_tokens_f32": "memory",
    "load_tokens_partial_f32": "memory",
    "load_wide_f32": "memory",
    "load_wide_i16": "memory",
    "load_wide_i8_as_i16": "memory",
    "load_wide_partial_f32": "memory",
    "low_nibbles": "codes",
    "low_u5": "codes",
    "low_u6": "codes",
    "max_lanes": "arithmetic",
    "max_rows": "arithmetic",
    "maximum": "arithmetic",
    "minimum": "arithmetic",
    "nanoseconds": "scalars",
    "next_section_u": "codes",
    "next_u5": "codes",
    "next_u6": "codes",
    "odd_lanes": "arithmetic",
    "power_of_two": "arithmetic",
    "prefetch": "scalars",
    "prefetch_level2": "scalars",
    "put_f32": "scalars",
    "put_f64": "scalars",
    "put_i32": "scalars",
    "put_i64": "scalars",
    "record_at": "scalars",
    "record_on_stack": "scalars",
    "round_even": "arithmetic",
    "round_up": "arithmetic",
    "rows_of": "memory",
    "scale_u": "codes",
    "scatter_f32": "memory",
    "scatter_i16": "memory",
    "scatter_i8": "memory",
    "scatter_pairs_i16": "memory",
    "scatter_pairs_i8": "memory",
    "semaphore_post": "scalars",
    "semaphore_wait": "scalars",
    "sleep_thread": "scalars",
    "splat": "memory",
    "splat_i32": "memory",
    "splat_wide": "memory",
    "square_root": "arithmetic",
    "stack_f32": "scalars",
    "start_dot_i8": "codes",
    "store": "memory",
    "store_bytes": "memory",
    "store_grid": "memory",
    "store_i16": "memory",
    "store_i8": "memory",
    "store_sums": "arithmetic",
    "sum_lanes": "arithmetic",
    "sum_lanes_i32": "arithmetic",
    "sum_rows": "arithmetic",
    "sum_so_far_i8": "codes",
    "sum_so_far_plane": "codes",
    "sum_so_far_u": "codes",
    "tiles_of": "memory",
    "to_f32": "arithmetic",
    "to_i32": "arithmetic",
    "tokens_of": "memory",
    "where_less": "arithmetic",
    "yield_thread": "scalars",
    "zero_dot_u": "codes",
    "zeros": "memory",
    "zeros_tiles": "codes",
    "zeros_wide": "memory",
    "zeros_wide_i32": "memory",
}
"""Function that kernels call -> the module of this package that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = deferred(f"{__name__}.{_MODULES[name]}", name)
    return found
