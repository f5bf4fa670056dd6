"""Does an instruction set compute what `blocks.py` specifies? Dot products of a few blocks are compared with numpy.

The functions use the methods of `Dot` that kernels use, and the same optimizer. They are not kernels: a kernel can only
be compiled once a set is chosen. Tests read their assembly for machines other than the one they run on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from quantkit_kernels import blocks

from .instruction_sets import U4, U5, U6, Dot, Unpacking
from .registers import (
    ELEMENTS,
    I8,
    I16,
    I32,
    I64,
    LANES,
    PER_LANE,
    WIDE,
    concatenated,
    constant,
    load_at,
    splat_scalar,
    store_at,
)

ROUNDS = 8
"""Random blocks of each kind that are compared, and as many of extreme codes, scales and activations."""


def agrees(dot: Dot, processor: str, features: str) -> bool:
    """Whether machine code for `processor` with `features`, which must be this one's, computes the same as numpy."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(processor, features, opt=3, jit=True)
    try:
        engine = llvm.create_mcjit_compiler(optimized(module_of(dot), target), target)
    except RuntimeError:  # an LLVM that knows such an instruction by another name
        return False
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)
    functions = {name: call(engine.get_function_address(name)) for name in BODIES}
    rng = np.random.default_rng(0)
    return all(
        all(_u_agrees(functions[kind], kind, rng, dot.tiles * LANES, extreme) for kind in blocks.WITH_MINS)
        and _i8_agrees(functions["int8"], rng, dot.tiles * LANES, extreme)
        and _i16_agrees(functions["i16"], rng, extreme)
        for extreme in (False, True)
        for _ in range(ROUNDS)
    )


def _u_agrees(function: Callable[..., None], kind: str, rng: np.random.Generator, rows: int, extreme: bool) -> bool:
    largest = blocks.KINDS[kind].largest_code
    codes = rng.choice([0, largest] if extreme else range(largest + 1), (rows, 32)).astype(np.uint8)
    codes[0] = largest if extreme else codes[0]
    scales = rng.choice([255] if extreme else range(256), (rows, 1)).astype(np.uint8)
    mins = rng.integers(-127, 128, (rows, 1)).astype(np.int8)
    x, y = _activations(rng, extreme), np.zeros(rows, np.float32)
    packed = blocks.pack(kind, codes, scales, mins)
    function(packed.ctypes.data, x.ctypes.data, y.ctypes.data)
    dots = codes.astype(np.int32) @ x.view(np.int8)[:32].astype(np.int32)
    return np.array_equal(y, (dots * scales[:, 0]).astype(np.float32))


def _i8_agrees(function: Callable[..., None], rng: np.random.Generator, rows: int, extreme: bool) -> bool:
    codes = rng.choice([-127, 127] if extreme else range(-127, 128), (rows, 32)).astype(np.int8)
    x, y = _activations(rng, extreme), np.zeros(rows, np.int32)
    packed = blocks.pack("int8", codes, np.ones((rows, 1), np.uint8))
    function(packed.ctypes.data, x.ctypes.data, y.ctypes.data)
    return np.array_equal(y, codes.astype(np.int32) @ x.view(np.int8)[:32].astype(np.int32))


def _i16_agrees(function: Callable[..., None], rng: np.random.Generator, extreme: bool) -> bool:
    a = rng.choice([-32767, 32767] if extreme else range(-32767, 32768), (2, WIDE, 2)).astype(np.int16)
    x = rng.choice([-16383, 16383] if extreme else range(-8191, 8192), (2, 2)).astype(np.int16)
    y = np.zeros(WIDE, np.int32)
    function(a.ctypes.data, x.ctypes.data, y.ctypes.data)
    return np.array_equal(y, (a.astype(np.int64) * x[:, None]).sum((0, 2)))


def _activations(rng: np.random.Generator, extreme: bool) -> NDArray[np.int32]:
    """32 bytes, and behind them -128 times their sum, i32. Half of the extreme ones are all of one sign."""
    x = rng.choice([-127, 127] if extreme else range(-127, 128), 32).astype(np.int8)
    if extreme and rng.integers(2):
        x[:] = x[0]
    return np.append(x.view(np.int32), np.int32(-128 * x.astype(np.int32).sum()))


def optimized(module: ir.Module, target: llvm.TargetMachine) -> llvm.ModuleRef:
    """Parse and optimize `module` for `target`, as numba does with kernels; `RuntimeError` if it is not valid."""
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return parsed


def module_of(dot: Dot) -> ir.Module:
    """Make a module of functions of addresses `(blocks, x, y)`.

    For `dot.tiles` row tiles of one block each, those named as a kind store dots of its blocks: with mins times their
    scales, f32; of `int8` without, i32. `i16` stores the dots of `WIDE` rows of four int16 numbers, pair after pair.
    """
    module = ir.Module()
    for name, body in BODIES.items():
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3), name)
        builder = ir.IRBuilder(function.append_basic_block())
        weight, x, y = function.args
        store_at(builder, body(dot, builder, weight, x), y)
        builder.ret_void()
    return module


def _register(dot: Dot, element: str) -> Any:
    return ir.VectorType(ELEMENTS[element], dot.tiles * LANES * PER_LANE[element])


def _tiled(dot: Dot, builder: Any, weight: Any, block_bytes: int, load: Any) -> Any:
    return concatenated(builder, [load(builder.add(weight, I64(tile * block_bytes))) for tile in range(dot.tiles)])


def _chunk(dot: Dot, builder: Any, weight: Any, block_bytes: int, chunk: int) -> Any:
    kind = ir.VectorType(I8, 4 * LANES)
    return _tiled(dot, builder, weight, block_bytes, lambda place: load_at(builder, kind, place, 32 * chunk))


def _scales(dot: Dot, builder: Any, weight: Any, block_bytes: int) -> Any:
    at = I64(block_bytes - 16)
    return _tiled(dot, builder, weight, block_bytes, lambda place: dot.load_scales(builder, builder.add(place, at)))


def _four_activations(dot: Dot, builder: Any, x: Any, chunk: int) -> Any:
    four = splat_scalar(builder, _register(dot, "i32"), load_at(builder, I32, x, 4 * chunk))
    return builder.bitcast(four, _register(dot, "i8"))


def _u(kind: str, unpacking: Unpacking) -> Callable[..., Any]:
    high_bits, size = sum(blocks.KINDS[kind].code_bits[1:]), blocks.KINDS[kind].block_bytes

    def body(dot: Dot, builder: Any, weight: Any, x: Any) -> Any:
        acc, total = constant(_register(dot, dot.u), 0), constant(_register(dot, "i32"), 0)
        scales = _scales(dot, builder, weight, size)
        for chunk in range(4):
            packed = _chunk(dot, builder, weight, size, chunk)
            if high_bits * chunk % 4 == 0:
                plane = _chunk(dot, builder, weight, size, 4 + high_bits * chunk // 4) if high_bits else packed
            for half, unpack in enumerate((unpacking.low, unpacking.high)):
                four = _four_activations(dot, builder, x, 2 * chunk + half)
                acc = dot.u_dot(builder, acc, unpack(builder, packed, plane), four)
            plane = unpacking.next(builder, plane)
            if (chunk + 1) % (4 >> high_bits) == 0:
                total, acc = dot.u_add_section(builder, total, acc, scales), dot.u_next_section(builder, acc)
        return dot.u_scaled(builder, total, scales)

    return body


def _i8(dot: Dot, builder: Any, weight: Any, x: Any) -> Any:
    register = _register(dot, "i32")
    acc = dot.i8_start(builder, register, splat_scalar(builder, register, load_at(builder, I32, x, 32)))
    for chunk in range(8):
        codes = _chunk(dot, builder, weight, blocks.KINDS["int8"].block_bytes, chunk)
        acc = dot.i8_dot(builder, acc, dot.i8_codes(builder, codes), _four_activations(dot, builder, x, chunk))
    return acc


def _i16(dot: Dot, builder: Any, a: Any, x: Any) -> Any:
    numbers, register = ir.VectorType(I16, 2 * WIDE), ir.VectorType(I32, WIDE)
    acc = constant(register, 0)
    for pair in range(2):
        both = builder.bitcast(splat_scalar(builder, register, load_at(builder, I32, x, 4 * pair)), numbers)
        acc = dot.i16_dot(builder, acc, load_at(builder, numbers, a, 4 * WIDE * pair), both)
    return acc


BODIES = {
    "int4": _u("int4", U4),
    "int5": _u("int5", U5),
    "int6": _u("int6", U6),
    "int8": _i8,
    "i16": _i16,
}
"""Name of a function -> what makes the value that it stores."""
