"""From float weights to the bytes of any kind, and back; how much was lost on the way.

This cuts a tensor into stripes of rows, so that memory stays bounded and all cores work. `kept_codes.py` writes blocks,
`recipe.py` chooses kinds, `pipeline.py` reads stripes ahead. No file is known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.quantization.kept_codes import encode_blocks
from quantkit.tensor import GroupScales, Tensor
from quantkit_kernels.blocks import KINDS, ROWS, expected_shapes
from quantkit_kernels.blocks import dequantize as dequantize_rows

ENCODER_VERSION = 5
"""Goes up when the same weights become other bytes, by other codes or by other kinds, such as those of
`allocation/`, so that nobody takes old packed copies for new ones."""
STRIPE_WEIGHTS = 1 << 18
"""About how many weights are worked on at once by each thread: 1 MB of f32, which stays in its cache."""


@dataclass(frozen=True)
class Encoded:
    """Some rows of a tensor in some kind, and what was lost.

    Attributes
    ----------
    data, row_scales : ndarray, and ndarray or None
        As of `Tensor`.
    error, squares : float
        Sums of the squared errors, and of the squared weights.
    kept : int or None
        Of blocks: row tiles with the codes of the source, which has quantized them before; None where it has not.
    """

    data: NDArray[Any]
    row_scales: NDArray[np.float32] | None
    error: float
    squares: float
    kept: int | None = None


def encode(
    stored: NDArray[Any],
    stored_kind: str,
    kinds: Collection[str],
    *,
    scales: GroupScales | None = None,
    importance: NDArray[np.float32] | None = None,
    search: bool = True,
    label: str = "tensor",
) -> dict[str, Encoded]:
    """Return rows of a tensor in other kinds; errors as of `quantize`.

    Parameters
    ----------
    stored : ndarray
        Rows of a tensor of kind f32, f16 or bf16: whole tiles, or up to its last row.
    stored_kind : str
    kinds : collection of str
        Names of `blocks.KINDS`.
    scales : GroupScales, optional
        What the rows were quantized with.
    importance : ndarray, optional
        f32 `[columns]`, finite, not below 0: what an error in each column counts in the search for blocks. By
        default all count the same.
    search : bool
        Whether blocks are searched that lose least; else weights are rounded in the range of their group.
    label : str
        Names file and tensor in messages.
    """
    stored = np.ascontiguousarray(stored)
    weights = _widened(stored_kind, stored)
    if not np.isfinite(weights).all():
        raise CheckpointError(f"{label} holds NaN or infinity; the checkpoint is damaged")
    squares = float(np.square(weights, dtype=np.float64).sum())
    found = {}
    for kind in kinds:
        data_shape, scales_shape = expected_shapes(kind, weights.shape)
        data = np.empty(data_shape, _DTYPES[kind])
        row_scales = None if scales_shape is None else np.empty(scales_shape, np.float32)
        if row_scales is None:
            error, kept = _ENCODERS[kind](weights, data), None
        else:
            error, kept = encode_blocks(kind, weights, data, row_scales, scales, importance, search=search)
        if not np.isfinite(error):
            raise CheckpointError(f"{label} holds weights that are too large for {kind}; keep it in f32")
        found[kind] = Encoded(data, row_scales, error, squares, kept)
    return found


def quantize(
    tensor: Tensor,
    kind: str,
    *,
    scales: GroupScales | None = None,
    importance: NDArray[np.float32] | None = None,
    label: str = "tensor",
    threads: int = 1,
) -> tuple[Tensor, float]:
    """Return a tensor in another kind.

    Parameters
    ----------
    tensor : Tensor
        Of kind f32, f16 or bf16 and any shape; block kinds need a matrix `[rows, columns]`, of any size.
    kind : str
        A name of `blocks.KINDS`.
    scales : GroupScales, optional
        What a matrix was quantized with before.
    importance : ndarray, optional
        What its columns count, as of `encode`.
    label : str
        Names file and tensor in messages.
    threads : int
        Threads to use; the result does not depend on it.

    Returns
    -------
    Tensor
        The tensor in the new kind.
    float
        Sum of squared errors over sum of squared weights; 0 for no error.

    Raises
    ------
    CheckpointError
        When a weight is NaN or infinite, or too large for f16.
    """
    found = encode_tensor(tensor, kind, scales=scales, importance=importance, label=label, threads=threads)
    return Tensor(kind, tensor.shape, found.data, found.row_scales), found.error / (found.squares or 1.0)


def encode_tensor(
    tensor: Tensor,
    kind: str,
    *,
    scales: GroupScales | None = None,
    importance: NDArray[np.float32] | None = None,
    label: str = "tensor",
    threads: int = 1,
) -> Encoded:
    """Return all rows of a tensor in another kind; parameters and errors as of `quantize`."""
    if not tensor.shape:
        vector = encode_tensor(_as_vector(tensor), kind, label=label)
        return replace(vector, data=vector.data.reshape(()))

    def encode_rows(rows: slice) -> Encoded:
        of_rows = scales and scales.viewed(itemgetter(rows))
        return encode(tensor.data[rows], tensor.kind, (kind,), scales=of_rows, importance=importance, label=label)[kind]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(encode_rows, stripes(tensor.shape)))
    row_scales = [part.row_scales for part in found if part.row_scales is not None]
    kept = [part.kept for part in found if part.kept is not None]
    return Encoded(
        np.concatenate([part.data for part in found]),
        np.concatenate(row_scales) if row_scales else None,
        sum(part.error for part in found),
        sum(part.squares for part in found),
        sum(kept) if kept else None,
    )


def dequantize(tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's weights as f32, in stripes of whole rows from first to last; a scalar is a row."""
    tensor = tensor if tensor.shape else _as_vector(tensor)
    for rows in stripes(tensor.shape):
        part = _tiles(rows) if tensor.row_scales is not None else rows
        shape = (len(range(*rows.indices(tensor.shape[0]))), *tensor.shape[1:])
        yield dequantize_rows(
            tensor.kind, tensor.data[part], None if tensor.row_scales is None else tensor.row_scales[part], shape
        )


def round_to(kind: str, weights: NDArray[np.float32]) -> tuple[NDArray[Any], float]:
    """Return numbers as `f32`, `f16` or `bf16` (uint16 bit patterns), and the sum of squared errors.

    They are rounded to nearest, ties to even. The error is not finite where one exceeds the range of the kind.
    """
    data = np.empty(weights.shape, _DTYPES[kind])
    return data, _ENCODERS[kind](weights, data)


def _widened(kind: str, stored: NDArray[Any]) -> NDArray[np.float32]:
    if kind != "f16":
        return dequantize_rows(kind, stored, None, stored.shape)
    from quantkit_kernels.packing.widen import widen_f16  # compiles, where the kernels are not cached

    return widen_f16(stored)


def _as_vector(scalar: Tensor) -> Tensor:
    """The same number as a vector of one."""
    return replace(scalar, shape=(1,), data=scalar.data.reshape(1))


def stripes(shape: tuple[int, ...], weights: int | None = None) -> list[slice]:
    """Cut the rows of a tensor into stripes of whole tiles, of about so many weights each."""
    columns = max(1, math.prod(shape[1:]))
    step = max(1, (STRIPE_WEIGHTS if weights is None else weights) // (ROWS * columns)) * ROWS
    return [slice(begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step)]


def _tiles(rows: slice) -> slice:
    return slice(rows.start // ROWS, -(-rows.stop // ROWS))


_Encoder = Callable[[NDArray[np.float32], NDArray[Any]], float]
"""Writes f32 rows into data of a plain kind; returns the sum of squared errors."""


def _encode_f32(weights: NDArray[np.float32], data: NDArray[Any]) -> float:
    data[...] = weights
    return 0.0


def _encode_f16(weights: NDArray[np.float32], data: NDArray[Any]) -> float:
    with np.errstate(over="ignore"):
        data[...] = weights
    return _squared_error(weights, data.astype(np.float32))


def _encode_bf16(weights: NDArray[np.float32], data: NDArray[Any]) -> float:
    """Round to nearest, ties to even."""
    bits = weights.view(np.uint32)
    data[...] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return _squared_error(weights, dequantize_rows("bf16", data, None, weights.shape))


def _squared_error(weights: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    return float(np.square(rounded - weights, dtype=np.float64).sum())


_ENCODERS: dict[str, _Encoder] = {"f32": _encode_f32, "f16": _encode_f16, "bf16": _encode_bf16}
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
_DTYPES |= {kind.name: _DTYPES[kind.storage] for kind in KINDS.values()}
