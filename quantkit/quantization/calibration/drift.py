"""What the layers before a matrix have lost, and what it should be to make up for it.

Behind packed layers, the inputs of a matrix W are no longer the X of the unpacked model but some others, X'. What comes
nearest to its output there is not W but the W' of the least `|W' X' - W X|` (GPTAQ: Li et al., 2025); and where the
output is added to a residual stream, which has drifted too, it can make up for that as well. `layers.py` runs both
models, `curvature.py` packs W'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import iadd

import numpy as np
from numpy.typing import NDArray

RIDGE = 0.5
"""Part of the mean of a Hessian's diagonal that is added to its diagonal. Along directions that the text hardly showed
the drift would be noise: without a ridge, divergence on text of another kind rises by a quarter, with it, it falls."""
LEAST_ROWS = 4
"""Rows of inputs, for each column, without which a drift is not fitted: it would follow their noise."""
CHUNK_ROWS = 8192
"""Rows that are multiplied at once."""


Floats = NDArray[np.float32]
Lacking = Callable[[slice], Floats]
"""Returns how much more the reference has than the packed model, of some tokens: f32 `[tokens, columns]`."""


@dataclass(frozen=True)
class Drift:
    """How much more the reference's values are than those of the packed model, as far as a layer's inputs tell it.

    A matrix that is packed for these inputs can make up for it.

    Attributes
    ----------
    inputs : ndarray, optional
        f32 `[columns, columns]`: of the inputs themselves.
    outputs : ndarray, optional
        f32 `[rows, columns]`: of what the output is added to, and of the output by the inputs, if they are None.
    """

    inputs: Floats | None
    outputs: Floats | None

    def target(self, weights: Floats, rows: slice) -> Floats:
        """Return what some rows of a matrix should be for inputs that have drifted."""
        target = weights if self.inputs is None else weights + weights @ self.inputs
        return target if self.outputs is None else target + self.outputs[rows]


class SharedInputs:
    """What the packed layers before some matrices left them as inputs, and what these lack.

    Parameters
    ----------
    hessian : ndarray
        f32 `[columns, columns]`, of the inputs.
    counted : ndarray
        f32 `[tokens, columns]`: the inputs, each as often as it counts.
    lacking : Lacking
        Of the inputs.
    narrow : bool
        Whether the matrices have fewer outputs, all together, than inputs: what their outputs lack is then cheaper to
        fit than what their inputs lack, and says the same.
    """

    def __init__(self, hessian: Floats, counted: Floats, lacking: Lacking, *, narrow: bool) -> None:
        self._hessian, self._counted, self._lacking, self._narrow = hessian, counted, lacking, narrow

    def drift(self, weights: Callable[[], Floats], added_to: Lacking | None) -> Drift:
        """Return what a matrix should make up for; `added_to` is of what its output is added to, if that is known."""
        if not self._narrow:
            return Drift(self._of_inputs, None if added_to is None else self._fit(added_to))
        matrix = weights()

        def lacking(tokens: slice) -> Floats:
            outputs = self._lacking(tokens) @ matrix.T
            return outputs if added_to is None else outputs + added_to(tokens)

        return Drift(None, self._fit(lacking))

    @cached_property
    def _of_inputs(self) -> Floats:
        return self._fit(self._lacking)

    def _fit(self, lacking: Lacking) -> Floats:
        return fit_drift(self._hessian, self._counted, lacking)


def lacking_of(found: Floats, wanted: Floats) -> Lacking:
    """Return what values of the packed model lack, beside those of the reference."""
    return lambda tokens: wanted[tokens] - found[tokens]


def fit_drift(hessian: Floats, inputs: Floats, lacking: Lacking) -> Floats:
    """Return the linear map of inputs that comes nearest to what is lacking, by least squares with a ridge.

    Parameters
    ----------
    hessian : ndarray
        f32 `[columns, columns]`, of the inputs.
    inputs : ndarray
        f32 `[tokens, columns]`.
    lacking : Lacking

    Returns
    -------
    ndarray
        f32 `[columns of what is lacking, columns of inputs]`.
    """
    chunks = (slice(first, first + CHUNK_ROWS) for first in range(0, len(inputs), CHUNK_ROWS))
    products = reduce(iadd, (lacking(chunk).T @ inputs[chunk] for chunk in chunks))
    ridged = hessian.copy()
    ridged[np.diag_indices(len(hessian))] += np.float32(RIDGE) * np.diagonal(hessian).mean()
    return np.ascontiguousarray(np.linalg.solve(ridged, products.T).T)
