"""A tensor as it lies in memory or in a mapped file: kind, true shape, bytes.

The common coin between what reads files (`checkpoint/`, `packed.py`) and what uses them (`engine.py`, `convert.py`).
It knows no file format and computes nothing; block layouts are specified in `quantkit_kernels.blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["embedding", "linear", "head", "norm", "bias"]
"""What a tensor is for; a quantization recipe chooses its kind by this."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a program reads: its name in the checkpoint, true shape and role."""

    name: str
    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model.

    Attributes
    ----------
    kind : str
        A name of `quantkit_kernels.blocks.KINDS`: `int4`, `int8`, `f16`, `bf16` or `f32`.
    shape : tuple of int
        True shape, without the padding of blocks: `(rows, cols)` or `(n,)`.
    data : ndarray
        For block kinds, uint8 `[ceil(rows/8), ceil(cols/32), block_bytes]`; for `f32`/`f16` the numbers themselves with
        `shape`; for `bf16` uint16 bit patterns with `shape`. C-contiguous, possibly a read-only memory map.
    row_scales : ndarray or None
        Block kinds only: float32 `[ceil(rows/8), 2 or 1, 8]`.
    """

    kind: str
    shape: tuple[int, ...]
    data: NDArray[Any]
    row_scales: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor occupies, row scales included."""
        return self.data.nbytes + (0 if self.row_scales is None else self.row_scales.nbytes)


class WeightSource(Protocol):
    """What a model can be loaded from: an open packed folder or an open checkpoint."""

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json`."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its full name (`...weight`); raises `CheckpointError` when there is none."""
