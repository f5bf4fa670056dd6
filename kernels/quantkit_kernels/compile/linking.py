"""How kernels become machine code: everything that an entry calls is linked, optimized and compiled together, once.

numba by itself optimizes each function, then again inside each function that calls it, and compiles all of them. Here
a kernel that only kernels call is a part: it stays unoptimized LLVM code. An entry links all parts
that it reaches, as internal functions, so that functions of one name in different entries cannot be confused.

These are the classes that numba's compiler asks for; `compiler.py` hands them out. They rely on names that numba keeps
to itself: importing this module fails with `ImportError` where one is missing, and `compiler.py` does without.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from quantkit_kernels.compile.private import require
from quantkit_kernels.simd.registers import I64

PART_FLAGS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Python does not call parts, so they need no wrapper for it."""
_REFUSE = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value
"""Address of the function that Python runs if it calls a part all the same: it raises `TypeError`."""


class _NoEnvironment:
    """Stands for numba's code generator in a part, once it is made."""

    def set_env(self, name: str, env: Any) -> None:
        """Do nothing: a part has no machine code that could use Python objects."""


class _Part(JITCodeLibrary):
    """The code of a kernel that only kernels call: neither optimized nor compiled by itself."""

    codegen = _NoEnvironment()

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int | None:
        return _REFUSE


class _Linked(JITCodeLibrary):
    """The code of an entry, with all parts that it reaches."""

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


class _ObjectFile(_Linked):
    """The code of an entry that is called by its address: it knows nothing of Python, and becomes an object file."""

    def emitted(self) -> bytes:
        """Link, optimize and compile; return the object file."""
        for library in self._linking_libraries:
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        for variable in self._final_module.global_variables:
            if variable.linkage.name == "common":  # of numba's, for Python objects: unused, so they vanish
                variable.linkage = "internal"
        self._optimize_final_module()
        self._final_module.verify()
        code: bytes = self._codegen._tm.emit_object(self._final_module)
        return code


def object_file(part: Any, name: str) -> bytes:
    """Compile a part of i64s as an entry.

    Parameters
    ----------
    part : CompileResult
        As numba's dispatcher has it, of a function that returns an integer or nothing.
    name : str
        Of the function in the object file, which takes and returns i64s. Kernels check no arguments: where numba's own
        code raises an error in one, the function returns 0.
    """
    with global_compiler_lock:
        context, inner = cpu_target.target_context, part.fndesc
        module, convention = context.create_module(name), context.call_conv
        callee = ir.Function(module, convention.get_function_type(inner.restype, inner.argtypes), inner.llvm_func_name)
        entry = ir.Function(module, ir.FunctionType(I64, [I64] * len(inner.argtypes)), name)
        builder = ir.IRBuilder(entry.append_basic_block())
        _, result = convention.call_function(builder, callee, inner.restype, inner.argtypes, entry.args)
        returns = isinstance(inner.restype, types.Integer)
        builder.ret(context.cast(builder, result, inner.restype, types.int64) if returns else I64(0))
        library = _ObjectFile(context.codegen(), name)
        library.add_ir_module(module)
        library.add_linking_library(part.library)
        return library.emitted()


def _compiler(library: type[JITCodeLibrary]) -> type[CompilerBase]:
    class Compiler(CompilerBase):
        """numba's compiler, with a library of this package's kind."""

        def define_pipelines(self) -> list[Any]:
            self.state.library = library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
            return [DefaultPassBuilder.define_nopython_pipeline(self.state)]

    return Compiler


PartCompiler, EntryCompiler = _compiler(_Part), _compiler(_Linked)


def _require_what_numba_keeps_to_itself() -> None:
    library = JITCodeLibrary(cpu_target.target_context.codegen(), "")
    require(library, "_codegen", "_final_module", "_finalized", "_linking_libraries", "_optimize_final_module")
    require(library, "_optimize_functions", "add_linking_library", "enable_object_caching", "get_pointer_to_function")
    require(library, "_get_module_for_linking")
    require(library._codegen, "_data_layout", "_tm")
    require(DefaultPassBuilder, "define_nopython_pipeline")


_require_what_numba_keeps_to_itself()
