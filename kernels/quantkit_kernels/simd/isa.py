"""Dot products of packed codes: the seam between instruction sets, and the choice of one.

Every set computes the same integers, hence the same bits. A new one is a subclass of `_Dot` and a row in `_DOTS`.
"""

from __future__ import annotations

import os
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import column, tiled_loader, widen_i8, widen_u8
from .vectors import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    LANES,
    ONE_F32,
    Vec,
    call_llvm,
    concatenated,
    constant,
    elementwise,
    join,
    load_at,
    splat_scalar,
)


class _Dot:
    """Dot products of packed codes in plain LLVM vectors: right on every machine, and what the others must equal.

    `u4` multiplies codes 0..15, `i8` codes -127..127, both by int8 activations in -127..127; each sums the 4 bytes of
    every 32-bit lane into its accumulator. A subclass replaces what its instruction set does better.
    """

    tiles = 1
    """Row tiles that a register of matrix products holds side by side."""
    u4 = "i32"
    """Elements of the accumulator of `u4`."""
    u4_scales = "f32"
    """Elements of the scales that it meets."""

    def load_scales(self, builder: Any, address: Any) -> Any:
        """The 8 u8 scales of a block, for `u4_scaled`."""
        return widen_u8(builder, load_at(builder, ir.VectorType(I8, LANES), address))

    def u4_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        """`acc` + dot of one chunk."""
        return self.i8_dot(builder, acc, codes, x)

    def u4_scaled(self, builder: Any, acc: Any, scales: Any) -> Any:
        """Product of the dot and the block's scales, f32; exact, since it stays below 2**24 (32 * 15 * 127 * 255)."""
        return builder.fmul(builder.sitofp(acc, scales.type), scales)

    def i8_start(self, builder: Any, register: Any, start: Any) -> Any:
        """Where the accumulator of `i8` begins; `start` is -128 times the sum of the activations."""
        return constant(register, 0)

    def i8_codes(self, builder: Any, codes: Any) -> Any:
        """Codes in the form that `i8_dot` takes."""
        return codes

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        """`acc` + dot of one chunk, i32."""
        codes, x = builder.bitcast(codes, acc.type), builder.bitcast(x, acc.type)
        for byte in range(4):
            up, down = constant(acc.type, 24 - 8 * byte), constant(acc.type, 24)
            parts = [builder.ashr(builder.shl(v, up), down) for v in (codes, x)]
            acc = builder.add(acc, builder.mul(*parts))
        return acc


class _DotAvx2(_Dot):
    """maddubs: u8 x i8 pairs into int16. Sums of 8 products of nibbles stay below 2**15 (8 * 2 * 15 * 127 = 30480)."""

    u4 = u4_scales = "i16"
    WORDS = ir.VectorType(I16, 16)
    DWORDS = ir.VectorType(I32, 8)

    def load_scales(self, builder: Any, address: Any) -> Any:
        wide = builder.zext(load_at(builder, ir.VectorType(I8, LANES), address), self.DWORDS)
        return builder.bitcast(builder.or_(wide, builder.shl(wide, constant(wide.type, 16))), self.WORDS)

    def u4_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return builder.add(acc, self._maddubs(builder, codes, x))

    def u4_scaled(self, builder: Any, acc: Any, scales: Any) -> Any:
        # The scale stands in both halves of a lane, so the horizontal sum and the product are one instruction.
        product = call_llvm(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, acc, scales)
        return builder.sitofp(product, ir.VectorType(F32, LANES))

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        magnitude = call_llvm(builder, "llvm.abs.v32i8", codes.type, codes, I1(0))
        signed = call_llvm(builder, "llvm.x86.avx2.psign.b", codes.type, x, codes)
        pairs = self._maddubs(builder, magnitude, signed)
        return builder.add(
            acc, call_llvm(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, pairs, constant(self.WORDS, 1))
        )

    def _maddubs(self, builder: Any, codes: Any, x: Any) -> Any:
        return call_llvm(builder, "llvm.x86.avx2.pmadd.ub.sw", self.WORDS, codes, x)


class _DotVnni(_Dot):
    """AVX-512 VNNI: vpdpbusd, u8 x i8 quadruples straight into int32, on two row tiles at once where both are there."""

    tiles = 2

    def u4_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return call_llvm(builder, f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}", acc.type, acc, codes, x)

    def i8_start(self, builder: Any, register: Any, start: Any) -> Any:
        return start

    def i8_codes(self, builder: Any, codes: Any) -> Any:
        # The instruction takes unsigned codes: 128 more than they are, which `i8_start` takes back.
        return builder.xor(codes, constant(codes.type, -128))

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return self.u4_dot(builder, acc, codes, x)


_DOTS: dict[str, tuple[_Dot, tuple[str, ...]]] = {
    "avx512vnni": (_DotVnni(), ("avx2", "avx512vnni", "avx512vl")),
    "avx2": (_DotAvx2(), ("avx2",)),
    "generic": (_Dot(), ()),
}
"""Instruction sets, best first, with the CPU features that each needs."""


def _choose() -> str:
    features = llvm.get_host_cpu_features()
    usable = [name for name, (_, needs) in _DOTS.items() if all(features.get(need) for need in needs)]
    forced = os.environ.get("QUANTKIT_ISA")
    if forced and forced not in usable:
        raise RuntimeError(f"QUANTKIT_ISA={forced}: this machine offers {', '.join(usable)}")
    return forced or usable[0]


ISA = _choose()
"""The instruction set in use: the best that this machine has, or the one that `QUANTKIT_ISA` names."""
_DOT = _DOTS[ISA][0]
TILES = _DOT.tiles
"""Row tiles that a register of `zeros_tiles` holds."""


@intrinsic(prefer_literal=True)
def zeros_tiles(typing, tokens):
    """f32 zeros for `TILES` row tiles and a literal number of tokens: a grid of 1 x tokens registers."""
    vec = Vec("f32", 1, tokens.literal_value, TILES * LANES)

    def generate(context, builder, sig, args):
        return join(builder, vec, [constant(vec.register, 0.0)] * vec.count)

    return vec(tokens), generate


low_nibbles = elementwise(1, "i8", lambda b, q: b.and_(q, constant(q.type, 15)))
"""Codes in the low halves of packed bytes."""


def _high(builder: Any, codes: Any) -> Any:
    words = ir.VectorType(I16, codes.type.count // 2)
    shifted = builder.lshr(builder.bitcast(codes, words), constant(words, 4))
    return builder.and_(builder.bitcast(shifted, codes.type), constant(codes.type, 15))


high_nibbles = elementwise(1, "i8", _high)
"""Codes in the high halves of packed bytes."""


@intrinsic
def zero_dot_u4(typing, like):
    """Where `dot_u4` begins."""
    vec = like.of(_DOT.u4)

    def generate(context, builder, sig, args):
        return join(builder, vec, [constant(vec.register, 0)] * vec.count)

    return vec(like), generate


@intrinsic
def start_dot_i8(typing, address, stride, like):
    """Where `dot_i8` begins; for token j an i32 at `address + j * stride`: -128 times the sum of its activations."""
    vec = like.of("i32")

    def generate(context, builder, sig, args):
        places = [builder.mul(args[1], I64(j)) for j in range(vec.tokens)]
        sums = [splat_scalar(builder, vec.register, load_at(builder, I32, args[0], place)) for place in places]
        starts = [_DOT.i8_start(builder, vec.register, x) for x in sums]
        return join(builder, vec, [starts[token] for _ in range(vec.rows) for token in range(vec.tokens)])

    return vec(types.int64, types.int64, like), generate


codes_i8 = elementwise(1, "i8", _DOT.i8_codes)
"""Codes -127..127 in the form that `dot_i8` takes."""
dot_u4 = elementwise(3, _DOT.u4, _DOT.u4_dot)
"""`dot_u4(acc, codes, x)`: add the dot products of codes 0..15 with int8 activations."""
dot_i8 = elementwise(3, "i32", _DOT.i8_dot)
"""`dot_i8(acc, codes, x)`: add the dot products of codes -127..127 with int8 activations."""
scale_u4 = elementwise(2, "f32", _DOT.u4_scaled)
"""`scale_u4(acc, scales)`: exact product of finished dots and block scales, f32."""


load_scales_u4 = tiled_loader(column(_DOT.u4_scales), _DOT.load_scales)
"""Block scales of each row tile, in the form that `scale_u4` takes."""
load_scales_f32 = tiled_loader(column("f32"), _Dot().load_scales)
"""Block scales of each row tile, f32."""


FOUR_BYTES = ir.VectorType(I8, 4)


@intrinsic
def load_codes_i8(typing, address, stride):
    """8 codes of a row of an `int8` block as f32: 4 bytes at `address`, 4 of the next chunk at `address + stride`."""

    def generate(context, builder, sig, args):
        codes = concatenated(builder, [load_at(builder, FOUR_BYTES, args[0]), load_at(builder, FOUR_BYTES, *args)])
        return widen_i8(builder, codes)

    return ONE_F32(types.int64, types.int64), generate


@intrinsic
def load_codes_u4(typing, address):
    """8 codes of a row of an `int4` block, from its 4 bytes of a chunk, as f32."""

    def generate(context, builder, sig, args):
        packed = load_at(builder, FOUR_BYTES, args[0])
        low = builder.and_(packed, constant(FOUR_BYTES, 15))
        high = builder.lshr(packed, constant(FOUR_BYTES, 4))
        wide = builder.zext(concatenated(builder, [low, high]), ir.VectorType(I32, LANES))
        return builder.sitofp(wide, ONE_F32.register)

    return ONE_F32(types.int64), generate
