"""Arrays for the tests of kernels: padded rows, and random weights of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantkit_kernels import blocks

UNTOUCHED = 12345
"""Stands behind the padding of a row, where no kernel may write."""


def row(values: ArrayLike) -> NDArray[np.float32]:
    """Return a row padded to a multiple of 16 columns with NaN, and 16 columns more that nobody may touch."""
    numbers = np.asarray(values, np.float32)
    padded = np.full(-(-numbers.size // 16) * 16 + 16, np.nan, np.float32)
    padded[: numbers.size] = numbers
    padded[-16:] = UNTOUCHED
    return padded


def result(out: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Return the columns of a `row` that a kernel has written."""
    assert (out[-16:] == UNTOUCHED).all(), "wrote past the padding"
    return out[:columns]


def address(array: NDArray[Any] | None) -> int:
    """Return where an array lies, 0 for none."""
    return 0 if array is None else array.ctypes.data


def random_weight(
    kind: str, rows: int, columns: int, rng: np.random.Generator, *, extreme: bool = False
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return data and row scales of a valid tensor; `extreme` blocks hold the largest codes, scales and mins."""
    tiles, groups = blocks.grid(rows, columns)
    if not blocks.KINDS[kind].block_bytes:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        if kind == "bf16":
            return (values.view(np.uint32) >> 16).astype(np.uint16), None
        return values.astype(np.float16 if kind == "f16" else np.float32), None
    scales = rng.integers(0, 256, (rows, groups)).astype(np.uint8)
    if extreme:
        scales[:] = 255
    if kind in blocks.WITH_MINS:
        largest = blocks.KINDS[kind].largest_code
        codes = rng.integers(0, largest + 1, (rows, columns)).astype(np.uint8)
        mins = rng.integers(-127, 128, (rows, groups)).astype(np.int8)
        if extreme:
            codes[:], mins[:] = largest, -127
        return blocks.pack(kind, codes, scales, mins), rng.uniform(1e-4, 1e-3, (tiles, 2, 8)).astype(np.float32)
    signed = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    if extreme:
        signed[:] = -127
    return blocks.pack(kind, signed, scales), rng.uniform(1e-5, 1e-4, (tiles, 1, 8)).astype(np.float32)
