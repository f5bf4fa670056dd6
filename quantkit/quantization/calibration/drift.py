"""What the layers before a matrix have lost, and what it should be to make up for it.

Behind packed layers, the inputs of a matrix W are no longer the X of the unpacked model but some others, X'. What comes
nearest to its output there is not W but the W' of the least `|W' X' - W X|` (GPTAQ: Li et al., 2025); and where the
output is added to a residual stream, which has drifted too, it can make up for that as well. `layers.py` runs both
models, `curvature.py` packs W'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIDGE = 0.5
"""Part of the mean of a Hessian's diagonal that is added to its diagonal. Along directions that the text hardly showed
the drift would be noise: without a ridge, divergence on text of another kind rises by a quarter, with it, it falls."""
LEAST_ROWS = 4
"""Rows of inputs, for each column, without which a drift is not fitted: it would follow their noise."""
CHUNK_ROWS = 8192
"""Rows that are multiplied at once."""


@dataclass(frozen=True)
class Drift:
    """How much more the reference's values are than those of the packed model, as far as a layer's inputs tell it.

    A matrix that is packed for these inputs can make up for it.

    Attributes
    ----------
    inputs : ndarray
        f32 `[columns, columns]`: of the inputs themselves.
    sums : ndarray, optional
        f32 `[rows, columns]`: of what the output is added to.
    """

    inputs: NDArray[np.float32]
    sums: NDArray[np.float32] | None = None

    def target(self, weights: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
        """Return what some rows of a matrix should be for inputs that have drifted."""
        target = weights + weights @ self.inputs
        return target if self.sums is None else target + self.sums[rows]


def fit_drift(
    hessian: NDArray[np.float32], inputs: NDArray[np.float32], found: NDArray[np.float32], wanted: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the linear map of inputs that comes nearest to `wanted - found`, by least squares with a ridge.

    Parameters
    ----------
    hessian : ndarray
        f32 `[columns, columns]`, of the inputs.
    inputs, found, wanted : ndarray
        f32 `[rows, columns]`; the last two of the same shape, which may have other columns.

    Returns
    -------
    ndarray
        f32 `[columns of found, columns of inputs]`.
    """
    products = np.zeros((found.shape[1], inputs.shape[1]), np.float32)
    for first in range(0, len(inputs), CHUNK_ROWS):
        chunk = slice(first, first + CHUNK_ROWS)
        products += (wanted[chunk] - found[chunk]).T @ inputs[chunk]
    ridge = np.float32(RIDGE) * np.diagonal(hessian).mean() * np.eye(len(hessian), dtype=np.float32)
    return np.ascontiguousarray(np.linalg.solve(hessian + ridge, products.T).T)
