"""Tensors between kinds: any float kind in, every kind out, whatever the shape and the number of threads."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

import quantkit.quantization.encode
import tiny
from quantkit.errors import CheckpointError
from quantkit.quantization.encode import ENCODER_VERSION, dequantize, quantize
from quantkit.tensor import Tensor
from quantkit_kernels import blocks

LARGEST_ERROR = {"f32": 0.0, "bf16": 3e-6, "f16": 5e-8, "int8": 4.6e-5, "int4": 6e-3, "int5": 1.7e-3, "int6": 5e-4}
"""Relative squared error of normally distributed weights."""

BYTES_OF_VERSION = {5: "22b0f38add4e622f0c6912d9e201581161ae2fc563259bd99ee56fcb33523c28"}
"""`ENCODER_VERSION` -> SHA-256 of one matrix in all kinds. Other bytes need another version: packed copies are kept."""


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def source(values: NDArray[np.float32], kind: str = "f32") -> Tensor:
    data = np.asarray(tiny.encode_dtype(values, kind.upper()))
    data.flags.writeable = False  # as a mapped file
    return Tensor(kind, values.shape, data)


def values(tensor: Tensor) -> NDArray[np.float32]:
    return blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape)


@pytest.mark.parametrize("kind", blocks.KINDS)
@pytest.mark.parametrize("source_kind", ["f32", "f16", "bf16"])
def test_error_is_small_and_told(source_kind: str, kind: str) -> None:
    before = source(normal(45, 100), source_kind)
    after, error = quantize(before, kind)
    assert (after.kind, after.shape) == (kind, (45, 100))
    assert (after.data.shape, None if after.row_scales is None else after.row_scales.shape) == blocks.expected_shapes(
        kind, (45, 100)
    )
    wanted = values(before).astype(np.float64)
    assert error == pytest.approx(np.square(values(after) - wanted).sum() / np.square(wanted).sum(), rel=1e-4)
    assert error <= LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_scalar_stays_one(kind: str) -> None:
    before = source(np.array(0.7, np.float32), "bf16")
    after, error = quantize(before, kind, threads=2)
    assert (after.kind, after.shape, after.data.shape) == (kind, (), ())
    assert values(after) == values(before)
    assert error <= LARGEST_ERROR[kind]
    assert np.concatenate(list(dequantize(after))) == [values(before)]


def test_other_bytes_are_another_version() -> None:
    digest = hashlib.sha256()
    for kind in blocks.KINDS:
        tensor, _ = quantize(source(tiny.weight("pinned", (45, 100))), kind)
        digest.update(tensor.data.tobytes() + (b"" if tensor.row_scales is None else tensor.row_scales.tobytes()))
    assert digest.hexdigest() == BYTES_OF_VERSION[ENCODER_VERSION]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_kind_is_itself_without_loss(kind: str) -> None:
    before = source(normal(9, 33), kind)
    after, error = quantize(before, kind)
    assert error == 0
    assert after.data.tobytes() == before.data.tobytes()


def test_bf16_rounds_to_nearest_even() -> None:
    patterns = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF], np.uint32)  # tie, tie, above, below
    after, _ = quantize(source(patterns.view(np.float32)), "bf16")
    assert after.data.tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80]


@pytest.mark.parametrize("kind", blocks.KINDS)
def test_stripes_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    before = source(normal(75, 40), "bf16")
    whole, error = quantize(before, kind)
    monkeypatch.setattr(quantkit.quantization.encode, "STRIPE_WEIGHTS", 16 * 40)
    for threads in (1, 3):
        after, striped = quantize(before, kind, threads=threads)
        assert after.data.tobytes() == whole.data.tobytes()
        if whole.row_scales is None:
            assert after.row_scales is None
        else:
            assert after.row_scales is not None
            assert after.row_scales.tobytes() == whole.row_scales.tobytes()
        assert striped == pytest.approx(error)
    stripes = list(dequantize(whole))
    assert len(stripes) == 5
    assert np.concatenate(stripes).tobytes() == values(whole).tobytes()


def test_vectors_and_single_rows() -> None:
    for shape, kind in [((7,), "f32"), ((1, 1), "int4"), ((1, 3), "int8")]:
        before = source(normal(*shape), "f16")
        after, _ = quantize(before, kind)
        assert values(after) == pytest.approx(values(before), rel=1e-2)
        assert np.concatenate(list(dequantize(after))).shape == shape


@pytest.mark.parametrize("kind", blocks.KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(kind: str, bad: float) -> None:
    weights = normal(20, 40)
    weights[17, 3] = bad
    with pytest.raises(CheckpointError, match=r"^x.safetensors: 'w' holds NaN or infinity"):
        quantize(source(weights, "bf16"), kind, label="x.safetensors: 'w'", threads=2)


def test_weights_beyond_f16_are_refused() -> None:
    with pytest.raises(CheckpointError, match="too large for f16"):
        quantize(source(np.array([1.0, 65520.0], np.float32)), "f16")
    after, _ = quantize(source(np.array([1.0, -65504.0], np.float32)), "f16")
    assert after.data.tolist() == [1.0, -65504.0]


@pytest.mark.parametrize("kind", ["int4", "int5", "int6", "int8"])
def test_huge_weights_keep_finite_scales(kind: str) -> None:
    weights = np.full((8, 32), 3e38, np.float32)
    weights[:, ::2] *= -1
    after, error = quantize(source(weights), kind)
    assert after.row_scales is not None
    assert np.isfinite(after.row_scales).all()
    assert error < 1e-3


@pytest.mark.parametrize("kind", blocks.KINDS)
def test_zeros_have_no_error(kind: str) -> None:
    after, error = quantize(source(np.zeros((9, 33), np.float32)), kind)
    assert error == 0
    assert not values(after).any()


@pytest.mark.parametrize("kind", ["int4", "int5", "int6", "int8"])
def test_columns_that_count_more_err_less(kind: str) -> None:
    """Whatever the threads."""
    before, importance = source(normal(200, 96)), np.ones(96, np.float32)
    importance[::8] = 100
    plain, _ = quantize(before, kind)
    found, error = quantize(before, kind, importance=importance, threads=3)
    again, _ = quantize(before, kind, importance=importance)
    assert found.data.tobytes() == again.data.tobytes()
    lost, lost_by_plain = (np.square(values(it) - values(before)).sum(axis=0) for it in (found, plain))
    assert lost[::8].sum() < 0.75 * lost_by_plain[::8].sum()
    assert error == pytest.approx(lost.sum() / np.square(values(before)).sum(), rel=1e-4)
