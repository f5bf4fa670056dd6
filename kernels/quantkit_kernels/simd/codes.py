"""Packed codes in registers: loaded, unpacked, multiplied and scaled with the instruction set in use."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import instruction_sets
from .instruction_sets import U4, U5, U6
from .isa import DOT, TILES
from .memory import column, stride_type, tiled_loader, widen_i8, zeros_of
from .registers import I8, I32, I64, LANES, concatenated, constant, load_at, splat_scalar, token_place, widen_u8
from .vectors import ONE_F32, elementwise, join, split

zeros_tiles = zeros_of(TILES * LANES)
"""As `zeros`, of registers that hold `TILES` row tiles each."""


low_nibbles = elementwise(1, "i8", instruction_sets.low_nibbles)
"""Codes in the low halves of packed bytes."""
high_nibbles = elementwise(1, "i8", instruction_sets.high_nibbles)
"""Codes in the high halves of packed bytes."""
low_u5, low_u6 = (elementwise(2, "i8", unpacking.low) for unpacking in (U5, U6))
"""`low_u5(packed, plane)`: codes in the low halves of packed bytes, with the bits above them that the plane has."""
high_u5, high_u6 = (elementwise(2, "i8", unpacking.high) for unpacking in (U5, U6))
"""The same of the high halves."""
next_u5, next_u6 = (elementwise(1, "i8", unpacking.next) for unpacking in (U5, U6))
"""`next_u5(plane)`: the plane for the next chunk."""


@intrinsic
def zero_dot_u(typing, like):
    """The accumulator that `dot_u` starts from."""
    vec = like.of(DOT.u)

    def generate(context, builder, sig, args):
        return join(builder, vec, [constant(vec.register, 0)] * vec.count)

    return vec(like), generate


@intrinsic
def start_dot_i8(typing, address, stride, like):
    """The accumulator that `dot_i8` starts from.

    At `address` is an i32 for each token, -128 times the sum of its activations; `stride` as of `broadcast_dwords`.
    """
    vec = like.of("i32")

    def generate(context, builder, sig, args):
        places = [token_place(builder, args[1], token, vec.tokens) for token in range(vec.tokens)]
        sums = [splat_scalar(builder, vec.register, load_at(builder, I32, args[0], place)) for place in places]
        starts = [DOT.i8_start(builder, vec.register, x) for x in sums]
        return join(builder, vec, [starts[token] for _ in range(vec.rows) for token in range(vec.tokens)])

    return vec(types.int64, stride_type(stride), like), generate


codes_i8 = elementwise(1, "i8", DOT.i8_codes)
"""Codes -127..127 in the form that `dot_i8` takes."""
dot_u = elementwise(3, DOT.u, DOT.u_dot)
"""`dot_u(acc, codes, x)`: add the dot products of codes 0..63 with int8 activations."""
add_section_u = elementwise(3, "i32", DOT.u_add_section)
"""`add_section_u(total, acc, scales)`: add a section of a group to its total, i32."""
next_section_u = elementwise(1, DOT.u, DOT.u_next_section)
"""The accumulator for the next section of a group, from that of the one before."""
dot_i8 = elementwise(3, "i32", DOT.i8_dot)
"""`dot_i8(acc, codes, x)`: add the dot products of codes -127..127 with int8 activations."""
sum_so_far_u, sum_so_far_i8 = elementwise(1, DOT.u, DOT.sum_so_far), elementwise(1, "i32", DOT.sum_so_far)
"""The same accumulator, whose sum LLVM does not turn into a tree: that takes more registers than a grid leaves."""
sum_so_far_plane = elementwise(1, DOT.u, DOT.plane_sum_so_far)
"""The same of codes with planes."""
scale_u = elementwise(2, "f32", DOT.u_scaled)
"""`scale_u(total, scales)`: product of finished totals and block scales, f32, rounded once."""


@intrinsic
def dot_i16_outer(typing, a, address, stride, acc):
    """`acc` + the dot products of a column `a` of int16 pairs with a pair of each token, from `address + j * stride`.

    As `fma_outer`: token after token, so that only one of the pairs occupies a register.
    """

    def generate(context, builder, sig, args):
        column, grid = split(builder, a, args[0]), split(builder, acc, args[3])
        for token in range(acc.tokens):
            pair = load_at(builder, I32, args[1], builder.mul(args[2], I64(token)))
            b = builder.bitcast(splat_scalar(builder, acc.register, pair), a.register)
            for row in range(acc.rows):
                place = row * acc.tokens + token
                grid[place] = DOT.i16_dot(builder, grid[place], column[row], b)
        return join(builder, acc, grid)

    return acc(a, types.int64, types.int64, acc), generate


load_scales_u = tiled_loader(column(DOT.u_scales), DOT.load_scales)
"""Block scales of each row tile, in the form that `scale_u` takes."""
load_scales_f32 = tiled_loader(column("f32"), instruction_sets.Dot().load_scales)
"""Block scales of each row tile, f32."""


FOUR_BYTES = ir.VectorType(I8, 4)


@intrinsic
def load_codes_i8(typing, address, stride):
    """8 codes of a row of an `int8` block as f32: 4 bytes at `address`, 4 of the next chunk at `address + stride`."""

    def generate(context, builder, sig, args):
        codes = concatenated(builder, [load_at(builder, FOUR_BYTES, args[0]), load_at(builder, FOUR_BYTES, *args)])
        return widen_i8(builder, codes)

    return ONE_F32(types.int64, types.int64), generate


def _codes_loader(unpacking):
    @intrinsic
    def load_codes(typing, address, plane, shift):
        """8 codes of a row of a block as f32: from 4 bytes of a chunk, and 4 of its plane from bit `shift` on."""

        def generate(context, builder, sig, args):
            packed, above = (load_at(builder, FOUR_BYTES, place) for place in args[:2])
            above = builder.lshr(above, splat_scalar(builder, FOUR_BYTES, builder.trunc(args[2], I8)))
            halves = [unpack(builder, packed, above) for unpack in (unpacking.low, unpacking.high)]
            return widen_u8(builder, concatenated(builder, halves))

        return ONE_F32(types.int64, types.int64, types.int64), generate

    return load_codes


load_codes_u4, load_codes_u5, load_codes_u6 = (_codes_loader(unpacking) for unpacking in (U4, U5, U6))
