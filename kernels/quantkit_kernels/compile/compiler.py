"""numba as the compiler of kernels: every flag that it is given, and the machine code of an entry as an object file.

Importing this imports numba. `jit.py` does when a kernel is called from Python, and `loading.py` when the machine code
of an entry is not on disk. Where numba lacks what `linking.py` and `cache.py` rely on, kernels are compiled by numba
alone, or not kept: slower, but with the same results.
"""

from __future__ import annotations

import functools
import inspect
import logging
import secrets
from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.core import config, event
from numba.core.registry import cpu_target

from quantkit_kernels.compile.folder import kernel_folder
from quantkit_kernels.compile.parallel import announce
from quantkit_kernels.compile.private import require
from quantkit_kernels.simd import ISA, arithmetic, codes, memory, scalars  # noqa: F401  what numba has to know
from quantkit_kernels.simd.isa import FEATURES, PROCESSOR

config.CPU_NAME, config.CPU_FEATURES = PROCESSOR, FEATURES
_, *_compiled_for = cpu_target.target_context.codegen().magic_tuple()
if _compiled_for != [PROCESSOR, FEATURES]:
    raise RuntimeError(
        f"numba compiles for {' '.join(_compiled_for)} since before quantkit was imported, and this is "
        f"{PROCESSOR} {FEATURES}: import quantkit.engine.model first"
    )

logger = logging.getLogger(__name__)

FLAGS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
"""nogil: worker threads run at once. numpy: division has no zero test. No fastmath: results may not depend on it."""


def _numba_options() -> tuple[dict[str, Any], dict[str, Any]]:
    """What numba is told besides the flags: for parts, which only kernels call, and for entries, which Python calls."""
    try:
        from quantkit_kernels.compile.linking import PART_FLAGS, EntryCompiler, PartCompiler
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("compiling takes three times as long, since numba compiles kernels by itself: %s", error)
        return {}, {}
    return {"pipeline_class": PartCompiler, **PART_FLAGS}, {"pipeline_class": EntryCompiler}


PART, ENTRY = _numba_options()


def dispatcher(function: Callable[..., Any], entry: bool) -> Any:
    """Return what numba compiles a kernel with, when it is called with arguments of some types."""
    if not PART:
        # numba by itself links by names that closures share, but for a number that starts at 1 in each process: code
        # from the cache and code compiled now could be taken for each other.
        function.__qualname__ = f"{secrets.token_hex(8)}.{function.__qualname__}"
    if not entry:
        return numba.njit(**FLAGS, **PART)(function)
    compiled = numba.njit(**FLAGS, **ENTRY)(function)
    if function.__closure__ is None:
        _keep(compiled, function)
    return compiled


def object_file(function: Callable[..., Any], name: str) -> bytes:
    """Compile an entry that takes i64s into an object file, with a function `name` that takes and returns i64s.

    Where numba compiles kernels by itself, the file is empty: then `address` has the entry.
    """
    if not PART:
        return b""
    from quantkit_kernels.compile.linking import object_file

    part = numba.njit(**FLAGS, **PART)(function)
    return object_file(_compiled(part), name)


def address(function: Callable[..., Any]) -> int:
    """Compile an entry that takes i64s, unless numba finds it on disk, and return where it lies."""
    compiled = _compiled(dispatcher(function, True))
    found: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
    return found


def _compiled(compiler: Any) -> Any:
    signature = (types.int64,) * len(inspect.signature(compiler.py_func).parameters)
    compiler.compile(signature)
    return compiler.overloads[signature]


def _keep(compiled: Any, function: Callable[..., Any]) -> None:
    """Let a dispatcher of numba's find its machine code on disk and leave it there."""
    folder = kernel_folder(ISA)
    if folder is None:
        return
    try:
        from quantkit_kernels.compile.cache import KernelCache

        require(compiled, "_cache")
    except ImportError as error:
        _say_not_kept(str(error))
    else:
        compiled._cache = KernelCache(function, folder)


@functools.cache
def _say_not_kept(cause: str) -> None:
    logger.warning("compiled kernels are not kept: %s", cause)


class _Notice(event.Listener):
    """Announces that kernels are compiled; silent when everything comes from the cache."""

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"].py_func.__module__.startswith("quantkit_kernels."):
            announce()

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


event.register("numba:compile", _Notice())
