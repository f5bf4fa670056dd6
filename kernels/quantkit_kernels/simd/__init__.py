"""SIMD vector types for numba: the only package that knows LLVM and the instruction set.

A `Vec` is a small grid of registers, `rows x tokens`, that lives in CPU registers as a numba value. Operations
broadcast over the grid as numpy does over arrays: `fma(w, x, acc)` with `w` of 2 x 1, `x` of 1 x 4 and `acc` of 2 x 4
registers is eight instructions. So a micro-kernel is written once, and the type of its accumulator says how it is
blocked. Where a function takes `like`, its result has the grid of that vector. Addresses are int64.

`vectors.py` defines the type; `memory.py` loads and stores; `arithmetic.py` computes; `codes.py` multiplies packed
codes with the instruction set that `isa.py` chose from `instruction_sets.py` and `check.py` compared with numpy;
`scalars.py` has single numbers, records, atomics and what threads need of the system. Kernels import from here alone;
`compile/jit.py` has the decorator that compiles them.
"""

from .arithmetic import (
    absolute,
    blend_first,
    clamp,
    copysign,
    fma,
    fma_outer,
    hadamard_lanes,
    max_lanes,
    maximum,
    minimum,
    power_of_two,
    round_even,
    round_up,
    store_sums,
    sum_lanes,
    sum_lanes_i32,
    to_f32,
    to_i32,
    where_less,
)
from .codes import (
    codes_i8,
    dot_i8,
    dot_u4,
    high_nibbles,
    load_codes_i8,
    load_codes_u4,
    load_scales_f32,
    load_scales_u4,
    low_nibbles,
    scale_u4,
    start_dot_i8,
    zero_dot_u4,
    zeros_tiles,
)
from .isa import I8_ROWS, ISA, TILES, U4_ROWS
from .memory import (
    F16_MAX,
    broadcast_dwords,
    broadcast_f32,
    load_bf16,
    load_f16,
    load_f32,
    load_i32,
    load_line_f32,
    load_partial_f32,
    load_rows_bf16,
    load_rows_bytes,
    load_rows_f16,
    load_rows_f32,
    load_rows_i8,
    load_rows_partial_bf16,
    load_rows_partial_f16,
    load_rows_partial_f32,
    load_tokens_f32,
    load_tokens_partial_f32,
    load_wide_f16,
    load_wide_f32,
    load_wide_i8,
    load_wide_partial_f32,
    rows_of,
    scatter_f16,
    scatter_f32,
    scatter_i8,
    splat,
    splat_i32,
    splat_wide,
    store,
    store_bytes,
    store_f16,
    store_grid,
    store_i8,
    tiles_of,
    tokens_of,
    zeros,
    zeros_wide,
)
from .scalars import (
    atomic_add,
    atomic_load,
    atomic_store,
    compare_exchange,
    cpu_relax,
    get_f32,
    get_i8,
    get_i64,
    get_u8,
    nanoseconds,
    prefetch,
    put_f32,
    put_i32,
    put_i64,
    record_at,
    semaphore_post,
    semaphore_wait,
    sleep_thread,
    stack_f32,
    yield_thread,
)
