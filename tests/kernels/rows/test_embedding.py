"""Rows of embedding tables against the block specification."""

from __future__ import annotations

import numpy as np
import pytest

from arrays import address, random_weight, result, row
from quantkit_kernels import blocks
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows import embedding


@jit(entry=True)
def embed(kind, weight, row_scales, row, columns, out):
    embedding.embed(kind, weight, row_scales, row, columns, out)


@pytest.mark.parametrize("kind", blocks.KINDS)
@pytest.mark.parametrize("columns", [1, 6, 8, 31, 32, 77])
def test_embed_is_what_the_block_specification_says(kind: str, columns: int) -> None:
    rows = 19
    data, row_scales = random_weight(kind, rows, columns, np.random.default_rng(columns))
    expected = blocks.dequantize(kind, data, row_scales, (rows, columns))
    for number in range(rows):
        out = row(np.zeros(columns))
        embed(blocks.KINDS[kind].code, address(data), address(row_scales), number, columns, address(out))
        np.testing.assert_allclose(result(out, columns), expected[number], rtol=3e-7, atol=3e-8)
