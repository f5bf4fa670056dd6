"""Pieces: which rows of a checkpoint's tensor are a program's, said with plain indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.tensor import Piece

MATRIX = np.arange(48).reshape(12, 4)
VECTOR = np.arange(12)
STACK = np.arange(96).reshape(2, 12, 4)

CASES: dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[Any], slice]] = {
    "all": (MATRIX, {}, MATRIX, slice(0, 12)),
    "some rows": (MATRIX, {"begin": 2, "end": 5, "period": 12}, MATRIX[2:5], slice(2, 5)),
    "some numbers": (VECTOR, {"begin": 2, "end": 5, "period": 12}, VECTOR[2:5], slice(2, 5)),
    "rows of every head": (
        MATRIX,
        {"begin": 1, "end": 3, "period": 6},
        MATRIX[[1, 2, 7, 8]],
        slice(0, 12),
    ),
    "every second row": (MATRIX, {"begin": 1, "end": 2, "period": 2}, MATRIX[1::2], slice(0, 12)),
    "every second number": (VECTOR, {"begin": 0, "end": 1, "period": 2}, VECTOR[::2], slice(0, 12)),
    "columns": (MATRIX.T, {"transposed": True}, MATRIX, slice(0, 4)),
    "some columns": (MATRIX.T, {"transposed": True, "begin": 2, "end": 5, "period": 12}, MATRIX[2:5], slice(0, 4)),
    "one of a stack": (STACK, {"index": 1}, STACK[1], slice(1, 2)),
    "rows of one of a stack": (STACK, {"index": 1, "begin": 0, "end": 5, "period": 12}, STACK[1, :5], slice(1, 2)),
    "numbers of one of a stack": (
        MATRIX,
        {"index": 3, "begin": 1, "end": 2, "period": 2},
        MATRIX[3, 1::2],
        slice(3, 4),
    ),
    "every second column of one of a stack": (
        STACK.swapaxes(1, 2),
        {"index": 1, "transposed": True, "begin": 1, "end": 2, "period": 2},
        STACK[1, 1::2],
        slice(1, 2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_found_without_a_copy(case: str) -> None:
    stored, options, expected, entries = CASES[case]
    piece = Piece("x", stored.shape, **options)
    assert piece.whole == (case == "all")
    assert piece.entries == entries
    view = piece.view(stored[piece.entries])
    assert np.shares_memory(view, stored)
    np.testing.assert_array_equal(view.reshape(expected.shape), expected)
