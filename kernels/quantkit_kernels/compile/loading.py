"""Machine code of entries in memory: object files, from disk or compiled just now, and the addresses of what they hold.

LLVM's loader alone: where all files are on disk, numba is never imported. What compiles is `compiler.py`.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from quantkit_kernels.compile.files import file_name, keep, kept
from quantkit_kernels.compile.folder import kernel_folder
from quantkit_kernels.simd import ISA
from quantkit_kernels.simd.isa import FEATURES, PROCESSOR

_LOCK = threading.Lock()


def address_of(function: Callable[..., Any]) -> int:
    """Return the address of an entry that takes i64s and returns one or nothing; compile it unless it is on disk.

    An empty object file says that numba compiled the entry by itself, and that `cache.py` keeps what came of it.
    """
    file = file_of(function)
    name = file.stem if file else f"{function.__name__}-{secrets.token_hex(8)}"
    code = kept(file) if file else None
    if code is None:
        from quantkit_kernels.compile import compiler

        code = compiler.object_file(function, name)
        if file:
            keep(file, code)
    return _load(code, name) if code else _address_by_numba(function)


def file_of(function: Callable[..., Any]) -> Path | None:
    """Return where the object file of an entry is or would be, None where it cannot be kept."""
    folder = kernel_folder(ISA) if function.__closure__ is None else None
    return folder / f"{file_name(function, PROCESSOR, FEATURES)}.o" if folder else None


def _address_by_numba(function: Callable[..., Any]) -> int:
    from quantkit_kernels.compile.compiler import address

    return address(function)


def _load(code: bytes, name: str) -> int:
    """Load an object file for as long as the process lives; return the address of the function `name` in it."""
    with _LOCK:
        engine = _engine()
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        address: int = engine.get_function_address(name)
    return address


@functools.cache
def _engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
