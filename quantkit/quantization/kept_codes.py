"""Blocks of weights: with codes that are searched, or rounded, or those that the source has quantized them to.

`ModelSource.group_scales` says what a tensor was quantized with. Its codes are kept where that errs less than other
ones. The kernels of `quantkit_kernels.packing` write both: `kept.py` rounds scales and mins that are given, of the
source or of the ranges of groups, `search.py` looks for better ones. Each tile of eight rows is decided by itself, so
the result depends on neither stripes nor threads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.tensor import GroupScales
from quantkit_kernels.blocks import COLUMNS, KINDS, ROWS, WITH_MINS

CODE_BITS = {"int4": 4, "int5": 5, "int6": 6, "int8": 8}
"""Bits of the widest codes that a kind of blocks keeps."""
NEGLIGIBLE = {"int4": 1e-4, "int5": 2.5e-5, "int6": 6e-6, "int8": 8e-7}
"""Relative squared error of kept codes below which nothing is searched: a fiftieth of what a search loses of normally
distributed weights. With mins, the search takes ten times as long as keeping codes."""

Floats = NDArray[np.float32]


def fit(kind: str, scales: GroupScales | None) -> bool:
    """Whether codes that weights were quantized with can be kept in a kind of blocks."""
    return scales is not None and scales.bits <= CODE_BITS[kind]


def encode_blocks(
    kind: str,
    weights: Floats,
    data: NDArray[np.uint8],
    row_scales: Floats,
    scales: GroupScales | None = None,
    importance: Floats | None = None,
    *,
    search: bool = True,
) -> tuple[float, int | None]:
    """Write weights as blocks.

    Parameters
    ----------
    kind : {"int4", "int5", "int6", "int8"}
    weights : ndarray
        f32 `[rows, columns]`, C-contiguous, finite.
    data, row_scales : ndarray
        Written, of the shapes of `blocks.expected_shapes`.
    scales : GroupScales, optional
        What the weights were quantized with.
    importance : ndarray, optional
        f32 `[columns]`: what an error in each column counts in the search.
    search : bool
        Whether scales and mins are searched that lose least; else those of the ranges of groups are taken.

    Returns
    -------
    float
        Sum of squared errors.
    int or None
        Row tiles of which the source's codes were kept; None where it has none that fit.
    """
    from quantkit_kernels.packing.search import search_blocks  # compiles, where the kernels are not cached

    write = partial(search_blocks, kind, importance=importance) if search else partial(_round, kind)
    if scales is None or not fit(kind, scales):
        return float(write(weights, data, row_scales).sum()), None
    errors = _keep(kind, weights, data, row_scales, scales.scales, scales.mins)
    starts = np.arange(0, len(weights), ROWS)
    squares = np.add.reduceat(np.square(weights, dtype=np.float64).sum(axis=1), starts)
    kept = errors <= NEGLIGIBLE[kind] * squares
    other, other_scales = np.empty_like(data[:1]), np.empty_like(row_scales[:1])
    for tile in np.flatnonzero(~kept):  # also of errors that are not finite
        (error,) = write(weights[starts[tile] : starts[tile] + ROWS], other, other_scales)
        kept[tile] = errors[tile] <= error
        if not kept[tile]:
            data[tile], row_scales[tile], errors[tile] = other[0], other_scales[0], error
    return float(errors.sum()), int(kept.sum())


def _round(kind: str, weights: Floats, data: NDArray[np.uint8], row_scales: Floats) -> NDArray[Any]:
    """Write blocks whose codes span the range of each group; returns the squared error of each row tile."""
    columns = weights.shape[1]
    last = np.repeat(weights[:, -1:], -columns % COLUMNS, axis=1)
    groups = np.concatenate([weights, last], axis=1).reshape(len(weights), -1, COLUMNS)
    low, high = groups.min(axis=2).astype(np.float64), groups.max(axis=2).astype(np.float64)
    span, mins = (high - low, low) if kind in WITH_MINS else (np.maximum(high, -low), np.zeros_like(low))
    scales = span / KINDS[kind].largest_code
    return _keep(kind, weights, data, row_scales, scales.astype(np.float32), mins.astype(np.float32))


def _keep(
    kind: str, weights: Floats, data: NDArray[np.uint8], row_scales: Floats, scales: Floats, mins: Floats
) -> NDArray[Any]:
    """Write blocks with the codes that scales and mins give; returns the squared error of each row tile."""
    from quantkit_kernels.packing.kept import keep_codes

    return keep_codes(kind, weights, np.ascontiguousarray(scales), np.ascontiguousarray(mins), data, row_scales)
