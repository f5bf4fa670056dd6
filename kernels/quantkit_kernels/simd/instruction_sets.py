"""Dot products of packed codes, once for each instruction set, and the table of sets.

Every set computes the same integers, hence the same bits; `check.py` proves it before a set is used. A new one is a
subclass of `Dot` and a row in `SETS`. `isa.py` chooses the set in use; `codes.py` has what kernels call. The methods
run while numba compiles: they take llvmlite's builder and the values of registers. They know LLVM, not numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .registers import F32, I1, I8, I16, I32, LANES, call_llvm, concatenated, constant, halves, load_at, widen_u8


def low_nibbles(builder: Any, packed: Any) -> Any:
    return builder.and_(packed, constant(packed.type, 15))


def high_nibbles(builder: Any, packed: Any) -> Any:
    return builder.and_(_shifted(builder, builder.lshr, packed, 4), constant(packed.type, 15))


def _shifted(builder: Any, shift: Callable[..., Any], packed: Any, bits: int) -> Any:
    """Bytes shifted in pairs, as instructions do it: bits of one get into the other."""
    words = ir.VectorType(I16, packed.type.count // 2)
    return builder.bitcast(shift(builder.bitcast(packed, words), constant(words, bits)), packed.type)


class Unpacking:
    """Codes of a chunk from packed bytes, which hold their low 4 bits, and a plane of bytes with those above.

    Parameters
    ----------
    bits : int
        Of a code, in the plane: 0, 1 or 2.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def low(self, builder: Any, packed: Any, plane: Any) -> Any:
        """Codes in the low halves of packed bytes, the bits above them in the lowest bits of the plane's bytes."""
        return self._joined(builder, low_nibbles(builder, packed), plane, 4)

    def high(self, builder: Any, packed: Any, plane: Any) -> Any:
        """Those in the high halves, the bits above them in the next bits."""
        return self._joined(builder, high_nibbles(builder, packed), plane, 4 - self._bits)

    def next(self, builder: Any, plane: Any) -> Any:
        """The plane for the next chunk."""
        return _shifted(builder, builder.lshr, plane, 2 * self._bits)

    def _joined(self, builder: Any, nibbles: Any, plane: Any, shift: int) -> Any:
        if not self._bits:
            return nibbles
        shifted = _shifted(builder, builder.shl, plane, shift)
        return builder.or_(nibbles, builder.and_(shifted, constant(plane.type, 16 * ((1 << self._bits) - 1))))


U4, U5, U6 = (Unpacking(bits) for bits in range(3))


def _opaque(builder: Any, value: Any, registers: str) -> Any:
    """The same value, without an instruction: LLVM does not look into what assembly returns.

    `registers` is LLVM's letter for those that may hold it.
    """
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", f"={registers},0", [value], False)


class Dot:
    """Dot products of packed codes in plain LLVM vectors: right on every machine; the other sets must equal it.

    `u` multiplies codes 0..63, `i8` codes -127..127, both by int8 activations in -127..127; each sums the 4 bytes of
    every 32-bit lane into its accumulator. A subclass replaces what its instruction set does better.

    A group has sections: as many codes as an accumulator of `u` surely holds. It holds 32 codes of 0..15, 16 of 0..31,
    8 of 0..63. Of each section `u_add_section` adds the dot to the total, and the next begins with `u_next_section`.
    """

    tiles = 1
    """Row tiles that a register of a matrix product holds side by side."""
    tokens = 4
    """Tokens of the largest grid of registers that a matrix product accumulates."""
    u4_rows = plane_rows = i8_rows = 2
    """Rows of that grid, for codes of 4 bits, with planes, of 8 bits: a second one halves the loads of activations."""
    mins_apart = False
    """Whether the largest grid leaves no register for sums of mins, which are then added apart."""
    i8_prefetch = 2
    """Level of the caches into which a product of `int8` with a single token prefetches weights. The second waits for
    more lines at once; the first is for sets that compute a line sooner than the second level would deliver it."""
    u = "i32"
    """Elements of the accumulator of `u`."""
    u_scales = "f32"
    """Elements of the scales that `u_scaled` takes."""

    def load_scales(self, builder: Any, address: Any) -> Any:
        """The 8 u8 scales of a block, for `u_scaled`."""
        return widen_u8(builder, load_at(builder, ir.VectorType(I8, LANES), address))

    def u_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        """`acc` + dot of one chunk."""
        return self.i8_dot(builder, acc, codes, x)

    def sum_so_far(self, builder: Any, acc: Any) -> Any:
        """The same accumulator; sets that spend an instruction on its sum keep LLVM from reordering it."""
        return acc

    def plane_sum_so_far(self, builder: Any, acc: Any) -> Any:
        """As `sum_so_far`, for codes with planes; sets with large grids keep LLVM from unpacking all chunks at once,
        which takes more registers than such a grid leaves."""
        return self.sum_so_far(builder, acc)

    def u_add_section(self, builder: Any, total: Any, acc: Any, scales: Any) -> Any:
        """The total, i32, with the dot of a section; sets may multiply by the scales here or in `u_scaled`."""
        return acc

    def u_next_section(self, builder: Any, acc: Any) -> Any:
        """The accumulator for the next section; `acc` holds those before."""
        return acc

    def u_scaled(self, builder: Any, total: Any, scales: Any) -> Any:
        """Product of the dot of a group and the block's scales, f32: the exact integer, rounded once.

        With codes above 15 it may exceed 2**24 (32 * 63 * 127 * 255). The dot and the scales are exact in f32, so their
        product is the integer, rounded once; so is the integer that becomes f32.
        """
        return builder.fmul(builder.sitofp(total, scales.type), scales)

    def i8_start(self, builder: Any, register: Any, start: Any) -> Any:
        """The accumulator that `i8_dot` starts from; `start` is -128 times the sum of the activations."""
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

    def i16_dot(self, builder: Any, acc: Any, a: Any, b: Any) -> Any:
        """`acc` + the products of the two int16 numbers of each lane, i32."""
        a, b, half = builder.bitcast(a, acc.type), builder.bitcast(b, acc.type), constant(acc.type, 16)
        high = builder.mul(builder.ashr(a, half), builder.ashr(b, half))
        low = builder.mul(*(builder.ashr(builder.shl(x, half), half) for x in (a, b)))
        return builder.add(acc, builder.add(low, high))


class Avx2(Dot):
    """maddubs: u8 x i8 pairs into int16.

    Sums of 8 pairs stay below 2**15 with codes 0..15 (8 * 2 * 15 * 127 = 30480), those of 4 with codes 0..31 (31496),
    those of 2 with codes 0..63 (32004).

    Codes of 8 bits leave their signs to the activations, which their magnitudes multiply. Two halves of 4 bits of each
    code plus 128, with an accumulator each, take as many instructions and more registers: 54 beside 60 GMAC/s on a core
    of Zen 4.
    """

    u = u_scales = "i16"
    mins_apart = True
    plane_rows = i8_rows = 1  # a dot takes more registers than there are for two
    WORDS = ir.VectorType(I16, 16)
    DWORDS = ir.VectorType(I32, 8)

    def load_scales(self, builder: Any, address: Any) -> Any:
        wide = builder.zext(load_at(builder, ir.VectorType(I8, LANES), address), self.DWORDS)
        return builder.bitcast(builder.or_(wide, builder.shl(wide, constant(wide.type, 16))), self.WORDS)

    def u_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return builder.add(acc, self._maddubs(builder, codes, x))

    def sum_so_far(self, builder: Any, acc: Any) -> Any:
        return _opaque(builder, acc, "x")

    def u_add_section(self, builder: Any, total: Any, acc: Any, scales: Any) -> Any:
        # The scale stands in both halves of a lane, so the horizontal sum and the product are one instruction.
        return builder.add(total, call_llvm(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, acc, scales))

    def u_next_section(self, builder: Any, acc: Any) -> Any:
        return constant(acc.type, 0)

    def u_scaled(self, builder: Any, total: Any, scales: Any) -> Any:
        return builder.sitofp(total, ir.VectorType(F32, LANES))

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        magnitude = call_llvm(builder, "llvm.abs.v32i8", codes.type, codes, I1(0))
        signed = call_llvm(builder, "llvm.x86.avx2.psign.b", codes.type, x, codes)
        pairs = self._maddubs(builder, magnitude, signed)
        return builder.add(
            acc, call_llvm(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, pairs, constant(self.WORDS, 1))
        )

    def i16_dot(self, builder: Any, acc: Any, a: Any, b: Any) -> Any:
        # Products first, then sums: in turn, each of Zen's two schedulers would get all of one kind.
        parts = zip(halves(builder, a), halves(builder, b), strict=True)
        products = [call_llvm(builder, "llvm.x86.avx2.pmadd.wd", self.DWORDS, *part) for part in parts]
        return builder.add(acc, concatenated(builder, products))

    def _maddubs(self, builder: Any, codes: Any, x: Any) -> Any:
        return call_llvm(builder, "llvm.x86.avx2.pmadd.ub.sw", self.WORDS, codes, x)


class AvxVnni(Dot):
    """vpdpbusd: u8 x i8 quadruples straight into int32."""

    plane_rows = 1  # unpacking takes the registers of a second one

    def u_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        # LLVM before 22 takes the bytes as i32; later ones accept it.
        codes, x = builder.bitcast(codes, acc.type), builder.bitcast(x, acc.type)
        return call_llvm(builder, f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}", acc.type, acc, codes, x)

    def i8_start(self, builder: Any, register: Any, start: Any) -> Any:
        return start

    def i8_codes(self, builder: Any, codes: Any) -> Any:
        # The instruction takes unsigned codes, so 128 is added to each; `i8_start` subtracts what that adds to the sum.
        return builder.xor(codes, constant(codes.type, -128))

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return self.u_dot(builder, acc, codes, x)

    def i16_dot(self, builder: Any, acc: Any, a: Any, b: Any) -> Any:
        if acc.type.count > LANES * self.tiles:  # a register of attention is two of these
            parts = zip(*(halves(builder, register) for register in (acc, a, b)), strict=True)
            return concatenated(builder, [self.i16_dot(builder, *part) for part in parts])
        a, b = builder.bitcast(a, acc.type), builder.bitcast(b, acc.type)
        return call_llvm(builder, f"llvm.x86.avx512.vpdpwssd.{32 * acc.type.count}", acc.type, acc, a, b)


class Avx512Vnni(AvxVnni):
    """The same instruction in registers of 512 bits: two row tiles at once where both are there.

    A grid of one row and 8 tokens is as fast as 2 x 4, and leaves room in the first-level cache for the next weights.

    On Zen 4 dots, multiplications and fused multiply-adds of 512 bits begin one a cycle. A group of `int4` has 8 dots
    for a register of rows and a token, a multiplication by its scales, and a multiply-add each for steps and mins, so
    that products run at 8 / 11 of the peak at most. They are measured at 95 % of that.
    """

    tiles = 2
    tokens = 8
    u4_rows = i8_rows = 1
    i8_prefetch = 1

    def plane_sum_so_far(self, builder: Any, acc: Any) -> Any:
        return _opaque(builder, acc, "v")


class Neon(Dot):
    """sdot: i8 x i8 quadruples into int32; codes 0..63 are small enough to pass as signed. A register is two of NEON's.

    Not `llvm.vector.partial.reduce.add`, which becomes this instruction on some processors: it may sum the bytes of
    one lane into another, and on others it does.
    """

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        parts = zip(*(halves(builder, register) for register in (acc, codes, x)), strict=True)
        return concatenated(builder, [self._sdot(builder, *part) for part in parts])

    def _sdot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return call_llvm(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, acc, codes, x)


SETS: dict[str, tuple[Dot, frozenset[str]]] = {
    "avx512vnni": (Avx512Vnni(), frozenset({"avx2", "avx512vnni", "avx512vl"})),
    "avxvnni": (AvxVnni(), frozenset({"avx2", "avxvnni"})),
    "avx2": (Avx2(), frozenset({"avx2"})),
    "neon": (Neon(), frozenset({"dotprod"})),
    "generic": (Dot(), frozenset()),
}
"""Instruction sets, best first, with the features of the processor that each needs, by LLVM's names."""
