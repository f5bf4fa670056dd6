"""The one decorator of the kernels: every compile flag, and what is kept on disk.

It is not a compiler: numba is. Kernels write `@jit`; the few functions that Python calls write `@jit(entry=True)`, and
only those become machine code, with everything they call inside them (`linking.py`), and are kept on disk (`cache.py`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import numba
from numba.core import event

from quantkit_kernels.compile.cache import KernelCache
from quantkit_kernels.compile.folder import kernel_folder
from quantkit_kernels.compile.linking import PART_FLAGS, EntryCompiler, PartCompiler
from quantkit_kernels.simd import ISA

logger = logging.getLogger(__name__)

FLAGS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
"""nogil: worker threads run at once. numpy: division has no zero test. No fastmath: results may not depend on it."""


def jit(function: Callable[..., Any] | None = None, *, entry: bool = False) -> Any:
    """Compile a kernel at its first call.

    Parameters
    ----------
    function : callable
        Takes and returns numbers and `simd` vectors; memory is passed as int64 addresses, never as arrays.
    entry : bool
        The function is called from Python: keep its machine code in `kernel_folder(ISA)`.
    """
    if function is None:
        return functools.partial(jit, entry=entry)
    if not entry:
        return numba.njit(pipeline_class=PartCompiler, **FLAGS, **PART_FLAGS)(function)
    compiled = numba.njit(pipeline_class=EntryCompiler, **FLAGS)(function)
    folder = kernel_folder(ISA)
    if folder is not None and function.__closure__ is None:
        compiled._cache = KernelCache(function, folder)
    return compiled


class _Notice(event.Listener):
    """Says at level INFO, once in a process, why the start is slow; silent when everything comes from the cache."""

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"].py_func.__module__.startswith("quantkit_kernels."):
            self._say()

    def on_end(self, event: Any) -> None:
        """Nothing to say."""

    @functools.cache  # noqa: B019  there is one listener
    def _say(self) -> None:
        logger.info("compiling kernels; this happens once and takes 10 to 20 seconds")


event.register("numba:compile", _Notice())
