"""f16 numbers as f32, before they are packed: numpy converts them one by one, which takes as long as packing to int8.

The truth is `blocks.dequantize`; both are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import load_f16, store

LANES = 8
"""Numbers of a register."""


def widen_f16(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return f16 numbers of any shape, C-contiguous, as f32."""
    numbers = np.empty(stored.shape, np.float32)
    whole = stored.size // LANES * LANES
    _widen(stored.ctypes.data, whole, numbers.ctypes.data)
    numbers.reshape(-1)[whole:] = stored.reshape(-1)[whole:]
    return numbers


@jit(entry=True)
def _widen(stored, count, out):
    """`count` is a multiple of `LANES`."""
    for place in range(0, count, LANES):
        store(out + 4 * place, load_f16(stored + 2 * place))
