"""What errors in a layer's outputs cost the model's predictions: the Fisher information, as two factors for a matrix.

With `g` the gradient of the log likelihood of sampled tokens at a layer's outputs, the Fisher matrix `E[g g^T]` is the
Hessian of the divergence from the model itself. One factor says what each token of the text counts, the other how
errors of the outputs work together (K-FAC: Martens and Grosse, 2015; for rounding: YAQA, Tseng et al., 2025).
`gradients.py` measures it, `curvature.py` packs with it. Nothing of torch is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 512
"""Rows of a matrix, at most, whose errors are weighed together: memory grows with it, and time."""
TILE_ROWS = 32
"""A block of rows is a multiple of it, unless it is the last."""
LARGE = 4 << 30
"""Bytes of weights in f32 from which on a model is measured in 16 bits, whatever the machine does with them."""


@dataclass
class Fisher:
    """Of the outputs of one matrix.

    Attributes
    ----------
    tokens : ndarray
        f32 `[tokens]`: what each token of the text counts; their mean is 1.
    outputs : list of ndarray
        For each of `row_blocks`, f32 `[rows, rows]`: the second moments of the gradient at these outputs, in any unit.
    """

    tokens: NDArray[np.float32]
    outputs: list[NDArray[np.float32]] = field(default_factory=list)


def row_blocks(rows: int) -> list[slice]:
    """Cut the rows of a matrix into blocks of about the same size, each at most `BLOCK_ROWS`."""
    count = -(-rows // BLOCK_ROWS)
    size = -(-rows // (count * TILE_ROWS)) * TILE_ROWS
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def save(path: Path, found: Mapping[str, Fisher]) -> None:
    """Write what was measured, by the names of matrices, to a file."""
    arrays = {f"tokens:{name}": each.tokens for name, each in found.items()}
    for name, each in found.items():
        arrays |= {f"outputs:{number}:{name}": block for number, block in enumerate(each.outputs)}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name is that of another parameter


def load(path: Path) -> dict[str, Fisher]:
    """Read what `save` wrote."""
    found: dict[str, Fisher] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, _, name = key.partition(":")
            if kind == "tokens":
                found[name] = Fisher(arrays[key])
            else:  # in the order of the blocks, behind all tokens
                found[name.partition(":")[2]].outputs.append(arrays[key])
    return found
