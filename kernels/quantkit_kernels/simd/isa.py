"""The choice of an instruction set: the best that the processor has and that computes rightly on it.

`instruction_sets.py` has the sets, `check.py` the comparison with numpy that each must pass before kernels are compiled
with it. A success is remembered in the kernels' cache folder, so the comparison runs once. numba is not needed for it:
`compile/compiler.py` lets numba compile for the processor that is found here.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os

import llvmlite.binding as llvm

from quantkit_kernels.compile.folder import kernel_folder

from .check import agrees
from .instruction_sets import SETS

logger = logging.getLogger(__name__)

AT_HWCAP, HWCAP_ASIMDDP = 16, 1 << 20
"""Linux on aarch64: the auxiliary vector's entry with the processor's abilities, and the bit for `sdot`."""


def _processor() -> tuple[str, str]:
    """Name and features of the processor that kernels are compiled for, as LLVM spells them.

    Variables that numba knows name another: `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`.
    """
    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    named = os.environ.get("NUMBA_CPU_FEATURES", "" if name == "generic" else None)
    features = llvm.get_host_cpu_features().flatten() if named is None else named
    if os.uname().machine == "aarch64" and named is None:
        # LLVM does not ask for this feature, it infers it from the name; and a virtual machine may hide the name.
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        if getauxval(AT_HWCAP) & HWCAP_ASIMDDP:
            features += ",+dotprod"
    return name, features


def _present(features: str) -> set[str]:
    """Names of the features that LLVM's list turns on: `+avx2` is present, `-avx512vnni` is not."""
    return {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def usable_sets(features: str) -> list[str]:
    """Return the names of the sets that a processor with these features can run, best first.

    Parameters
    ----------
    features : str
        As LLVM writes them: names separated by commas, each behind the sign `+` (present) or `-` (absent).
    """
    present = _present(features)
    return [isa for isa, (_, needs) in SETS.items() if needs <= present]


def _choose(name: str, features: str) -> str:
    if os.uname().machine == "x86_64" and "f16c" not in _present(features):
        raise RuntimeError(f"quantkit needs a processor with F16C, as all with AVX2 have it; this is {name}")
    usable = usable_sets(features)
    forced = os.environ.get("QUANTKIT_ISA")
    if forced and forced not in usable:
        raise RuntimeError(f"QUANTKIT_ISA={forced}: this machine offers {', '.join(usable)}")
    return first_right(usable[usable.index(forced) if forced else 0 :], name, features)


def first_right(candidates: list[str], processor: str, features: str) -> str:
    """Return the first of `candidates` whose dot products are numpy's on this machine; warn about those before it.

    Raises `RuntimeError` if there is none.
    """
    mark = "right-" + hashlib.sha256(f"{processor} {features}".encode()).hexdigest()[:16]
    for isa in candidates:
        folder = kernel_folder(isa)
        if folder and (folder / mark).exists():
            return isa
        if agrees(SETS[isa][0], processor, features):
            if folder:
                with contextlib.suppress(OSError):  # no room: it is compared again next time
                    (folder / mark).touch()
            return isa
        logger.warning("instruction set %s computes wrongly on this machine (%s): not used", isa, processor)
    raise RuntimeError(f"no instruction set computes rightly on this machine ({processor}): tried {candidates}")


PROCESSOR, FEATURES = _processor()
"""What kernels are compiled for."""
ISA = _choose(PROCESSOR, FEATURES)
"""The instruction set in use; `QUANTKIT_ISA` names another."""
DOT = SETS[ISA][0]
TILES = DOT.tiles
"""Row tiles that a register of `zeros_tiles` holds."""
TOKENS = DOT.tokens
"""Tokens of the largest grid of such registers that a matrix product accumulates."""
U4_ROWS, PLANE_ROWS, I8_ROWS = DOT.u4_rows, DOT.plane_rows, DOT.i8_rows
"""Rows of that grid, in a product of `int4`, of `int5` or `int6`, and of `int8`."""
I8_PREFETCH = DOT.i8_prefetch
"""Level of the caches into which such a product prefetches weights for a single token."""
MINS_APART = DOT.mins_apart
"""Whether the largest grid leaves no register for sums of mins."""
