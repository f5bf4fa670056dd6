"""What errors cost, and matrices of any shape packed so that they cost little."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.quantization.calibration import CALIBRATED
from quantkit.quantization.calibration.curvature import DAMPING, curvature_of, output_error_of, pack_under
from quantkit.quantization.encode import quantize
from quantkit.tensor import Tensor
from quantkit_kernels import blocks


def inputs_of(rows: int, columns: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    mixed = np.eye(columns) + rng.standard_normal((columns, columns)) / np.sqrt(columns)
    x: NDArray[np.float32] = (rng.standard_normal((rows, columns)) @ mixed).astype(np.float32)
    return x


def test_the_hessian_is_damped_and_factored() -> None:
    x = inputs_of(200, 40)
    curvature = curvature_of(x)
    assert curvature is not None
    expected = np.zeros((64, 64))
    expected[:40, :40] = x.T.astype(np.float64) @ x
    expected[np.diag_indices(40)] += DAMPING * np.diagonal(expected)[:40].mean()
    assert sorted(curvature.order) == list(range(64))
    expected = expected[np.ix_(curvature.order, curvature.order)]
    np.testing.assert_allclose(curvature.hessian, expected, rtol=1e-4, atol=1e-3)
    lower = curvature.lower.astype(np.float64)
    assert (np.triu(lower, 1) == 0).all()
    np.testing.assert_allclose(lower.T @ lower, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("x", [inputs_of(4, 64), np.zeros((100, 64), np.float32)], ids=["few", "zeros"])
def test_inputs_that_say_nothing_have_no_curvature(x: NDArray[np.float32]) -> None:
    assert curvature_of(x) is None


@pytest.mark.parametrize("shape", [(64, 96), (41, 70), (3, 33)])
@pytest.mark.parametrize("stored", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("kind", CALIBRATED)
def test_outputs_change_less_than_without(shape: tuple[int, int], stored: str, kind: str) -> None:
    weights, _ = quantize(Tensor("f32", shape, inputs_of(*shape)), stored)
    x = inputs_of(300, shape[1])
    curvature = curvature_of(x)
    assert curvature is not None
    start, _ = quantize(weights, kind)
    packed, error, output_error = pack_under(curvature, weights, start, threads=2)
    assert packed.kind == kind
    wanted, free, found = (
        blocks.dequantize(each.kind, each.data, each.row_scales, shape).astype(np.float64)
        for each in (weights, start, packed)
    )
    outputs = x @ wanted.T
    lost = ((x @ found.T - outputs) ** 2).sum()
    assert lost < 0.8 * ((x @ free.T - outputs) ** 2).sum()
    assert output_error == pytest.approx(lost / (outputs**2).sum(), rel=0.1)
    assert error == pytest.approx(((found - wanted) ** 2).sum() / (wanted**2).sum(), rel=1e-3)
    assert output_error_of(curvature, weights, packed) == pytest.approx(output_error, rel=1e-3)


def test_threads_change_nothing() -> None:
    weights = Tensor("f32", (100, 64), inputs_of(100, 64))
    curvature = curvature_of(inputs_of(300, 64))
    assert curvature is not None
    start, _ = quantize(weights, "int4")
    one, two = (pack_under(curvature, weights, start, threads)[0] for threads in (1, 3))
    assert (one.data == two.data).all()
