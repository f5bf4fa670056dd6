"""The one decorator of the kernels, and what becomes of a kernel when it is called or its address is asked for.

It is not a compiler: numba is, as `compiler.py` asks it, and it is imported when there is something to compile. Kernels
write `@jit`; the few functions that are called from outside, by Python or by their address, write `@jit(entry=True)`.
Only those become machine code, with everything they call inside them (`linking.py`), and are kept on disk (`files.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Kernel:
    """A function that numba compiles at its first call, or for the first kernel that calls it.

    Attributes
    ----------
    py_func : callable
        The function as it is written.
    entry : bool
        It becomes machine code of its own.
    """

    def __init__(self, function: Callable[..., Any], entry: bool) -> None:
        functools.update_wrapper(self, function)
        self.py_func, self.entry = function, entry

    def __call__(self, *args: Any) -> Any:
        return self.dispatcher(*args)

    @functools.cached_property
    def dispatcher(self) -> Any:
        """What numba makes of it."""
        from quantkit_kernels.compile.compiler import dispatcher

        return dispatcher(self.py_func, self.entry)

    @property
    def _numba_type_(self) -> Any:
        """What numba asks an object for that it does not know."""
        return self.dispatcher._numba_type_

    @property
    def loaded(self) -> bool:
        """Whether its address has been asked for, so that its machine code is in memory."""
        return "address" in self.__dict__

    @functools.cached_property
    def address(self) -> int:
        """Of the machine code of an entry that takes i64s and returns one or nothing, as `simd.call` takes it.

        It is compiled unless it is kept on disk; where it is, numba is not imported.
        """
        from quantkit_kernels.compile.loading import address_of

        return address_of(self.py_func)


def jit(function: Callable[..., Any] | None = None, *, entry: bool = False) -> Any:
    """Compile a kernel when it is needed.

    Parameters
    ----------
    function : callable
        Takes and returns numbers and `simd` vectors; memory is passed as int64 addresses, never as arrays.
    entry : bool
        The function is called from Python, or by its address: keep its machine code in `kernel_folder(ISA)`.
    """
    return Kernel(function, entry) if function else functools.partial(jit, entry=entry)
