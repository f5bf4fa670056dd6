"""How kernels become machine code: all that one entry calls is linked, optimized and compiled together, once.

numba by itself optimizes every function, then again inside of each that calls it, makes machine code of all, and lets
the loader choose among functions of one name, which closures share. Here a kernel that only kernels call stays a part,
in LLVM's words as numba wrote it; an entry takes the parts that it reaches, as functions of its own.

These are the classes that numba's compiler asks for; `jit.py` hands them out. They rely on what numba keeps to itself.
"""

from __future__ import annotations

import ctypes
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder

PART_FLAGS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Python does not call parts."""
_REFUSE = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value
"""What Python runs if it calls one all the same: it raises TypeError."""


class _NoEnvironment:
    """Takes the place of numba's code generator once a part is made."""

    def set_env(self, name: str, env: Any) -> None:
        """A part has no code that could ask for Python objects."""


class _Part(JITCodeLibrary):
    """A kernel that only kernels call: neither optimized nor compiled by itself."""

    codegen = _NoEnvironment()

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int | None:
        return _REFUSE


class _Entry(JITCodeLibrary):
    """A kernel that Python calls, with all parts that it reaches."""

    def add_linking_library(self, library: Any) -> None:
        if library in self._linking_libraries:
            return
        super().add_linking_library(library)
        if isinstance(library, _Part):
            for called in library._linking_libraries:
                self.add_linking_library(called)

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "internal"
        super()._optimize_final_module()


def _compiler(library: type[JITCodeLibrary]) -> type[CompilerBase]:
    class Compiler(CompilerBase):
        """numba's compiler, with a library of this package's kind."""

        def define_pipelines(self) -> list[Any]:
            self.state.library = library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
            return [DefaultPassBuilder.define_nopython_pipeline(self.state)]

    return Compiler


PartCompiler, EntryCompiler = _compiler(_Part), _compiler(_Entry)
