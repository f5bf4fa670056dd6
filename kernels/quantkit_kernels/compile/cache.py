"""numba's side of compiled kernels on disk: entries that Python calls, with arguments of any types.

numba's own cache unpickles whatever it finds and fails where it cannot write; here the files are those of `files.py`.
It relies on names that numba keeps to itself: importing it fails with `ImportError` where one is missing, and
`compiler.py` does without.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from quantkit_kernels.compile.files import file_name, keep, kept
from quantkit_kernels.compile.private import require

require(CompileResult, "_reduce", "_rebuild")


class KernelCache(NullCache):
    """Where numba's dispatcher of an entry looks for machine code and leaves it: one file for each signature.

    Parameters
    ----------
    function : callable
        The entry.
    folder : Path
        The folder of `kernel_folder`: it stands for the kernels' sources, the versions and the instruction set.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        self._function, self._folder = function, folder

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return the compiled entry, or None if it must be compiled."""
        context.refresh()
        content = kept(self._file(signature, context.codegen()))
        return None if content is None else CompileResult._rebuild(context, *pickle.loads(content))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep the compiled entry."""
        if not result.library.has_dynamic_globals:
            keep(self._file(signature, result.codegen), dumps(result._reduce()))

    def _file(self, signature: Any, codegen: Any) -> Path:
        return self._folder / f"{file_name(self._function, signature, codegen.magic_tuple())}.nbc"
