"""A plugin of pytest's, `-p plain_numba`: numba lacks a name that `compile/linking.py` needs, and kernels do without.

Imported before `quantkit_kernels`; it hides the name from modules that are imported later, not from numba.
"""

import numba.core.compiler

del numba.core.compiler.CompilerBase
