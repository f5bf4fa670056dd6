"""What packed layers have lost is made up for by those behind them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.quantization.calibration import drift
from quantkit.quantization.calibration.curvature import curvature_of, pack_under
from quantkit.quantization.calibration.drift import SharedInputs, fit_drift, lacking_of
from quantkit.quantization.encode import quantize
from quantkit.tensor import Tensor
from quantkit_kernels import blocks

Floats = NDArray[np.float32]
RNG = np.random.default_rng(3)


def normal(*shape: int, size: float = 1.0) -> Floats:
    return (size * RNG.standard_normal(shape)).astype(np.float32)


def test_a_linear_drift_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "RIDGE", 0.0)
    monkeypatch.setattr(drift, "CHUNK_ROWS", 64)
    inputs, found, by = normal(300, 40), normal(300, 24), normal(24, 40)
    lacking = lacking_of(found, found + inputs @ by.T)
    np.testing.assert_allclose(fit_drift(inputs.T @ inputs, inputs, lacking), by, atol=1e-4)


def test_directions_that_the_text_hardly_showed_are_left_alone() -> None:
    inputs = normal(300, 4)
    inputs[:, 3] *= 0.01
    by = fit_drift(inputs.T @ inputs, inputs, lacking_of(inputs, 2 * inputs))
    assert (np.diagonal(by)[:3] > 0.5).all()
    assert abs(by[3, 3]) < 0.01


@pytest.mark.parametrize("narrow", [False, True])
def test_a_matrix_makes_up_for_inputs_and_sums_that_have_drifted(narrow: bool) -> None:
    weights, x, h = normal(24, 64), normal(2000, 64), normal(2000, 24)
    drifted: Floats = x @ (np.eye(64, dtype=np.float32) + normal(64, 64, size=0.1))
    drifted_h: Floats = h + x @ normal(64, 24, size=0.5)
    matrix = Tensor("f32", weights.shape, weights)
    start, _ = quantize(matrix, "int4")
    curvature = curvature_of(drifted)
    assert curvature is not None
    hessian = curvature.of_columns(64)
    np.testing.assert_allclose(hessian, drifted.T @ drifted, rtol=0.03, atol=40)
    of = SharedInputs(hessian, drifted, lacking_of(drifted, x), narrow=narrow)
    drifts = (None, of.drift(lambda: weights, None), of.drift(lambda: weights, lacking_of(drifted_h, h)))
    lost = []
    for each in drifts:
        packed, *_ = pack_under(curvature, matrix, start, 2, each)
        found = blocks.dequantize("int4", packed.data, packed.row_scales, weights.shape)
        lost.append(float(np.square(drifted_h + drifted @ found.T - (h + x @ weights.T)).mean()))
    assert lost[1] < 0.6 * lost[0]
    assert lost[2] < 0.6 * lost[1]


def test_outputs_and_inputs_say_the_same() -> None:
    weights, x, found, h, drifted_h = normal(24, 64), normal(900, 64), normal(900, 64), normal(900, 24), normal(900, 24)
    narrow, wide = (
        SharedInputs(found.T @ found, found, lacking_of(found, x), narrow=narrow).drift(
            lambda: weights, lacking_of(drifted_h, h)
        )
        for narrow in (True, False)
    )
    rows = slice(8, 16)
    np.testing.assert_allclose(narrow.target(weights[rows], rows), wide.target(weights[rows], rows), atol=1e-3)
