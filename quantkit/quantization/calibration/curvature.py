"""What errors in the weights of a layer cost, for inputs that are known; and blocks that cost little.

Codes are found by a kernel, `quantkit_kernels.packing.gptq`, panel by panel of rows, which threads share. No model is
known here, and no file.

All tokens count alike. What an error does to the loss, the gradient of the layer's output says (GuidedQuant: Kim et
al., 2025); but with tokens weighted by its squares SmolLM2-135M in 90.5 MB diverges by 0.0134 instead of 0.0129, and
models would have to be run backwards.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.quantization.calibration.drift import Drift, Floats
from quantkit.quantization.encode import dequantize as dequantize_tensor
from quantkit.tensor import Tensor
from quantkit_kernels.blocks import COLUMNS, ROWS, dequantize

DAMPING = 0.01
"""Part of the mean of a Hessian's diagonal that is added to its diagonal: what the text did not show counts too."""
LEAST_ROWS = 1 / 8
"""Rows of inputs, for each column, without which they say too little."""
PADDING = 1e-6
"""How much columns that fill the last group count, beside those that the text did not show."""
CHUNK_ROWS = 8192
"""Rows of inputs that are multiplied at once."""
STRIPE_ROWS = 2048
"""Rows of a matrix of which it is known at once what they should be: many, since a product of few is slow."""


@dataclass(frozen=True)
class Curvature:
    """The Hessian of a layer's squared output error, damped and padded to whole groups of columns.

    Attributes
    ----------
    hessian : ndarray
        f32 `[size, size]`, positive definite, its columns in the order in which they are rounded.
    lower : ndarray
        The lower triangular L of which it is `L^T L`.
    order : ndarray
        int64 `[size]`: which column of the inputs each of its own is; those from their number on fill the last group.
    """

    hessian: Floats
    lower: Floats
    order: NDArray[np.int64]

    def of_columns(self, columns: int) -> Floats:
        """Return the Hessian of the inputs' columns, in their own order: a copy."""
        places = np.argsort(self.order)[:columns]
        return self.hessian[np.ix_(places, places)]


def curvature_of(inputs: Floats) -> Curvature | None:
    """Return the curvature for inputs f32 `[rows, columns]`, or None where they are too few, or all zeros."""
    from quantkit_kernels.packing.gptq import order_of

    rows, columns = inputs.shape
    if rows < LEAST_ROWS * columns:
        return None
    size = -(-columns // COLUMNS) * COLUMNS
    hessian = np.zeros((size, size), np.float32)
    corner = hessian[:columns, :columns]
    product = np.empty_like(corner)  # memory that is new is slow
    for first in range(0, rows, CHUNK_ROWS):
        chunk = inputs[first : first + CHUNK_ROWS]
        corner += np.matmul(chunk.T, chunk, out=product)
    del product
    damping = DAMPING * float(np.diagonal(corner).mean())
    if not 0 < damping < np.inf:
        return None
    hessian[np.diag_indices(size)] += np.where(np.arange(size) < columns, damping, PADDING * damping).astype(np.float32)
    order = order_of(hessian)
    hessian = hessian[np.ix_(order, order)]
    turned = np.linalg.cholesky(hessian[::-1, ::-1].astype(np.float64).T)  # the order that LAPACK copies without jumps
    return Curvature(hessian, np.ascontiguousarray(turned[::-1, ::-1].T, np.float32), order)


def pack_under(
    curvature: Curvature, weights: Tensor, start: Tensor, threads: int, drift: Drift | None = None
) -> tuple[Tensor, float, float]:
    """Pack a matrix under a curvature.

    Parameters
    ----------
    curvature : Curvature
    weights : Tensor
        Of kind f32, f16 or bf16, finite.
    start : Tensor
        The same packed to int4, int5 or int6, as it is best for the weights by themselves.
    threads : int
        The result does not depend on it.
    drift : Drift, optional
        What the matrix is to make up for.

    Returns
    -------
    Tensor
        Of the kind of `start`.
    float, float
        Squared error of the weights, relative to their sum of squares; and the same of the layer's output, where that
        is what the drift asks for.
    """
    from quantkit_kernels.packing.gptq import PANEL_ROWS, PANEL_TILES, pack_panel

    assert start.row_scales is not None
    data: NDArray[np.uint8] = np.empty_like(start.data)
    row_scales = start.row_scales.copy()

    def pack(wanted: Floats, target: Floats, blocks: NDArray[np.uint8], scales: Floats) -> tuple[float, ...]:
        costs = pack_panel(start.kind, target, curvature.hessian, curvature.lower, curvature.order, blocks, scales)
        missed = dequantize(start.kind, blocks, scales, target.shape) - wanted
        return *costs, float(np.vdot(missed, missed)), float(np.vdot(wanted, wanted))

    found: list[tuple[float, ...]] = []
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, weights.shape[0], STRIPE_ROWS):
            stripe = slice(first, first + STRIPE_ROWS)
            tiles = slice(first // ROWS, (first + STRIPE_ROWS) // ROWS)
            stored = weights.data[stripe]
            wanted = dequantize(weights.kind, stored, None, stored.shape)
            target = drift.target(wanted, stripe) if drift else wanted
            panels = (_cut(array, PANEL_ROWS) for array in (wanted, target))
            found += pool.map(pack, *panels, *(_cut(array[tiles], PANEL_TILES) for array in (data, row_scales)))
    sums = np.array(found).sum(axis=0)
    cost, whole, squared, squares = sums.tolist()
    return Tensor(start.kind, weights.shape, data, row_scales), squared / (squares or 1.0), cost / (whole or 1.0)


def _cut(array: NDArray[Any], rows: int) -> list[NDArray[Any]]:
    return [array[first : first + rows] for first in range(0, len(array), rows)]


def output_error_of(curvature: Curvature, weights: Tensor, packed: Tensor) -> float:
    """Return the squared error of a layer's output, relative to its sum of squares, as `pack_under` does."""
    hessian = curvature.of_columns(weights.shape[1])
    cost = whole = 0.0
    for wanted, found in zip(dequantize_tensor(weights), dequantize_tensor(packed), strict=True):
        lost = found - wanted
        cost, whole = cost + float(np.vdot(lost @ hessian, lost)), whole + float(np.vdot(wanted @ hessian, wanted))
    return cost / (whole or 1.0)
