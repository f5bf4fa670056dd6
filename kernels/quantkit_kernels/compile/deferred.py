"""Functions that kernels call and numba provides, before numba is imported.

A start that finds all machine code on disk compiles nothing, and importing numba would be half of its time. So kernels
are defined without it: `jit.py` keeps them as they are, and what they call of `simd` is a name until numba asks for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any


class Deferred:
    """A function for kernels to call, which is made when numba compiles the first of them.

    Called from Python, it stands for what it will return then: `record_at(STEP)` makes a function for kernels.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = functools.cache(make)

    def __call__(self, *args: Any) -> Deferred:
        return Deferred(lambda: self._make()(*args))

    @functools.cached_property
    def _numba_type_(self) -> Any:
        """What numba asks an object for that it does not know."""
        from numba.core.registry import cpu_target

        function = self._make()
        cpu_target.typing_context.refresh()  # it may have been made just now
        return cpu_target.typing_context.resolve_value_type(function)


def deferred(module: str, name: str) -> Deferred:
    """Return what stands for a function of a module that is not imported yet."""
    return Deferred(lambda: getattr(import_module(module), name))
