"""What errors in outputs cost: kept in a file as it was, and cut into blocks of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.quantization.calibration.fisher import BLOCK_ROWS, TILE_ROWS, Fisher, load, row_blocks, save
from quantkit_kernels.packing.gptq import PANEL_ROWS


@pytest.mark.parametrize("rows", [1, 32, 192, 576, 1536, 11008, 1100])
def test_blocks_cover_the_rows_once(rows: int) -> None:
    blocks = row_blocks(rows)
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert all(block.stop - block.start <= BLOCK_ROWS for block in blocks)
    assert all(block.start % TILE_ROWS == 0 for block in blocks)
    assert TILE_ROWS == PANEL_ROWS


def test_a_file_holds_what_was_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    blocks = [rng.standard_normal((n, n)).astype(np.float32) for n in (3, 2)]
    wanted = {"a:b.weight": Fisher(np.array([1, 2], np.float32), blocks), "c.weight": Fisher(np.array([3], np.float32))}
    save(tmp_path / "file", wanted)
    found = load(tmp_path / "file")
    assert list(found) == list(wanted)
    for name, each in wanted.items():
        assert (found[name].tokens == each.tokens).all()
        assert all((one == two).all() for one, two in zip(found[name].outputs, each.outputs, strict=True))
