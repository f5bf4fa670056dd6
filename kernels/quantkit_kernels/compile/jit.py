"""The one decorator of the kernels: every compile flag, and what is kept on disk.

It is not a compiler: numba is. Kernels write `@jit`; the few functions that are called from outside, by Python or by
their address, write `@jit(entry=True)`, and only those become machine code, with everything they call inside them
(`linking.py`), and are kept on disk (`cache.py`).
Where numba lacks what these two rely on, kernels are compiled by numba alone, or not kept: slower, but with the same
results.
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
from numba.core import event

from quantkit_kernels.compile.folder import kernel_folder
from quantkit_kernels.compile.private import require
from quantkit_kernels.simd import ISA

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


def jit(function: Callable[..., Any] | None = None, *, entry: bool = False) -> Any:
    """Compile a kernel at its first call.

    Parameters
    ----------
    function : callable
        Takes and returns numbers and `simd` vectors; memory is passed as int64 addresses, never as arrays.
    entry : bool
        The function is called from Python, or by its address: keep its machine code in `kernel_folder(ISA)`.
    """
    if function is None:
        return functools.partial(jit, entry=entry)
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


def address_of(entry: Any) -> int:
    """Compile an entry of i64 arguments, unless it is kept on disk, and return the address that `simd.call` takes."""
    signature = (types.int64,) * len(inspect.signature(entry.py_func).parameters)
    entry.compile(signature)
    compiled = entry.overloads[signature]
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
    return address


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
    """Says at level INFO, once in a process, why the start is slow; silent when everything comes from the cache."""

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"].py_func.__module__.startswith("quantkit_kernels."):
            self._say()

    def on_end(self, event: Any) -> None:
        """Nothing to say."""

    @functools.cache  # noqa: B019  there is one listener
    def _say(self) -> None:
        how_often = "once" if kernel_folder(ISA) else "at each start"
        logger.info("compiling kernels; this happens %s and takes 10 to 20 seconds", how_often)


event.register("numba:compile", _Notice())
