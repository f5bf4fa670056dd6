"""The compute package of quantkit: block formats, kernels, and the interpreter that runs a program of them.

Importing this package loads nothing; `blocks` needs numpy alone, other modules LLVM, and numba when they compile.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

cache_folder: Callable[[str], Path] | None = None
"""Where compiled kernels are kept. Whoever uses this package assigns a function that takes the name of a folder and
returns its path, or raises `OSError` where no folder can be trusted; it is called when kernels are first needed. With
None, each process compiles the kernels anew.
"""
