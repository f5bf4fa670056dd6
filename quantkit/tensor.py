"""A tensor, as every part of quantkit knows it: `TensorSpec` describes one, `Tensor` holds its numbers.

Programs say by specs what they read, formats say by specs what a file holds, and both meet without knowing each other.
No file format is known here and nothing is computed; the layout of blocks is specified in `quantkit_kernels.blocks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["embedding", "linear", "head", "norm", "bias", "unknown"]
"""What a tensor is for; a quantization recipe chooses its kind by this. A file alone does not know it."""
ANY = "any"
"""The kind in the spec of a tensor that may be of any kind."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without its numbers: what a program asks for, or what a file offers.

    Attributes
    ----------
    name : str
        Full name, `model.layers.0.mlp.up_proj.weight`.
    shape : tuple of int
        True shape, without the padding of blocks: `(rows, cols)` or `(n,)`.
    role : str
        What a program uses it for.
    kind : str
        A name of `quantkit_kernels.blocks.KINDS`; in a program `ANY`, for it reads all kinds.
    aliases : tuple of str
        Other names under which a checkpoint may store it; the first that is there counts, `name` before all.
    optional : bool
        Where no block of a checkpoint has such a tensor, it stands for zeros.
    """

    name: str
    shape: tuple[int, ...]
    role: Role = "unknown"
    kind: str = ANY
    aliases: tuple[str, ...] = ()
    optional: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether its numbers are those of a row, whatever its shape: they weigh nothing and stay f32."""
        return self.role in ("norm", "bias")

    @property
    def weights(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)


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
