"""Single numbers and records in memory, atomics, and what threads need: stack, prefetch, sleep, semaphores, time."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from .registers import F32, F64, I8, I32, I64, call_llvm, load_at, store_at


def _scalar_loader(kind: Any, result: Any) -> Any:
    def load(typing, address):
        def generate(context, builder, sig, args):
            return load_at(builder, kind, args[0])

        return result(types.int64), generate

    return intrinsic(load)


def _scalar_storer(kind: Any, number: Any) -> Any:
    def put(typing, address, value):
        def generate(context, builder, sig, args):
            store_at(builder, context.cast(builder, args[1], sig.args[1], number), args[0])
            return context.get_dummy_value()

        return types.void(types.int64, value), generate

    return intrinsic(put)


def record_at(dtype: np.dtype[Any]) -> Any:
    """Make a function that sees the record of a numpy dtype at an address: kernels read its fields by name."""
    record = from_dtype(dtype)

    @intrinsic
    def view(typing, address):
        def generate(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), generate

    return view


def record_on_stack(dtype: np.dtype[Any]) -> Any:
    """Make a function that returns the address of one such record on the calling function's stack, not initialized."""

    @intrinsic
    def address(typing):
        def generate(context, builder, sig, args):
            memory = cgutils.alloca_once(builder, ir.ArrayType(I8, dtype.itemsize))
            memory.align = 64
            return builder.ptrtoint(memory, I64)

        return types.int64(), generate

    return address


@intrinsic
def call(typing, function, arguments):
    """Call the compiled function at an address (`compile.jit.Kernel.address`) with a tuple of i64s; returns its i64."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(I64, [I64] * len(arguments))
        values = [builder.extract_value(args[1], place) for place in range(len(arguments))]
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return types.int64(types.int64, arguments), generate


get_u8 = _scalar_loader(I8, types.uint8)
get_i8 = _scalar_loader(I8, types.int8)
get_i32 = _scalar_loader(I32, types.int32)
get_i64 = _scalar_loader(I64, types.int64)
get_f32 = _scalar_loader(F32, types.float32)
put_i32 = _scalar_storer(I32, types.int32)
put_i64 = _scalar_storer(I64, types.int64)
put_f32 = _scalar_storer(F32, types.float32)
put_f64 = _scalar_storer(F64, types.float64)


@intrinsic
def atomic_add(typing, address, value):
    """Add to an i64 atomically; returns its previous value."""

    def generate(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_load(typing, address):
    """Read an i64 that other threads write. What a thread wrote before it is visible afterwards."""

    def generate(context, builder, sig, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def atomic_store(typing, address, value):
    """Write an i64 that other threads read. What this thread wrote before becomes visible with it."""

    def generate(context, builder, sig, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def compare_exchange(typing, address, expected, value):
    """Write an i64 atomically if its value is `expected`; returns whether it was."""

    def generate(context, builder, sig, args):
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def cpu_relax(typing):
    """Tell the core that this is a spin loop (`pause`, `isb`)."""

    def generate(context, builder, sig, args):
        if "x86" in builder.module.triple or builder.module.triple.startswith("i"):
            call_llvm(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif builder.module.triple.startswith(("aarch64", "arm64")):
            # Not `yield`, which does nothing on a core of one thread: `isb` waits for the pipeline to drain.
            call_llvm(builder, "llvm.aarch64.isb", ir.VoidType(), I32(15))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def yield_thread(typing):
    """Let the operating system run another thread (`sched_yield`)."""

    def generate(context, builder, sig, args):
        call_llvm(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def sleep_thread(typing, microseconds):
    """Put the thread to sleep for so many microseconds (`usleep`)."""

    def generate(context, builder, sig, args):
        call_llvm(builder, "usleep", I32, builder.trunc(args[0], I32))
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _semaphore(name: str) -> Any:
    def operate(typing, address):
        def generate(context, builder, sig, args):
            return call_llvm(builder, name, I32, builder.inttoptr(args[0], I8.as_pointer()))

        return types.int32(types.int64), generate

    return intrinsic(operate)


semaphore_post = _semaphore("sem_post")
"""POSIX `sem_post` on an initialized `sem_t`."""
semaphore_wait = _semaphore("sem_wait")
"""POSIX `sem_wait`; may return early on a signal."""


@intrinsic(prefer_literal=True)
def stack_f32(typing, count):
    """Return the address of `count` f32 (a literal) on the calling function's stack, not initialized.

    It is that of a cache line, so that no vector is split between two.
    """

    def generate(context, builder, sig, args):
        memory = cgutils.alloca_once(builder, ir.ArrayType(F32, count.literal_value))
        memory.align = 64
        return builder.ptrtoint(memory, I64)

    return types.int64(count), generate


def _prefetcher(level: int) -> Any:
    def prefetch(typing, address):
        def generate(context, builder, sig, args):
            pointer = builder.inttoptr(args[0], I8.as_pointer())
            call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(4 - level), I32(1))
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return intrinsic(prefetch)


prefetch, prefetch_level2 = _prefetcher(1), _prefetcher(2)
"""Prefetch the cache line at an address for reading, into the first or the second level of caches; never faults.

Lines from memory take long, and a core waits for few of its first level at once, but for many of its second.
"""


@intrinsic
def nanoseconds(typing):
    """Monotonic time in nanoseconds (`clock_gettime`)."""

    def generate(context, builder, sig, args):
        pair = builder.alloca(ir.ArrayType(I64, 2))
        call_llvm(builder, "clock_gettime", I32, I32(1), pair)
        seconds, rest = (builder.load(builder.gep(pair, [I32(0), I32(i)])) for i in range(2))
        return builder.add(builder.mul(seconds, I64(1_000_000_000)), rest)

    return types.int64(), generate
