"""Memory nodes, read from made-up trees; pages of files, moved by this machine's system or by a made-up one."""

from __future__ import annotations

import errno
import logging
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.engine import numa
from quantkit.errors import OptionError

PAGES = 100


@pytest.fixture
def mapped(tmp_path: Path) -> NDArray[Any]:
    """Weights in a file, which begin and end inside of a page."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(PAGES * mmap.PAGESIZE))
    return np.memmap(file, np.uint8, "r", offset=100, shape=(10, (PAGES * mmap.PAGESIZE - 200) // 10))


@pytest.mark.parametrize(
    ("present", "allowed", "nodes"),
    [
        ("0\n", "0", [0]),
        ("0-1\n", "0-1", [0, 1]),
        ("0-3\n", "0,2", [0, 2]),  # bound by `numactl --membind` or a cpuset
        ("0,8\n", "0-63", [0, 8]),  # as POWER and CXL memory are numbered
        ("1\n", "0-1", [1]),
    ],
)
def test_nodes_with_memory_that_the_process_may_use(
    tmp_path: Path, present: str, allowed: str, nodes: list[int]
) -> None:
    for name, text in {
        "sys/devices/system/node/has_memory": present,
        "proc/self/status": f"Name:\tpython\nMems_allowed:\tff\nMems_allowed_list:\t{allowed}\nThreads:\t1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert numa.memory_nodes(tmp_path) == nodes


def test_a_system_without_nodes_has_one(tmp_path: Path) -> None:
    assert numa.memory_nodes(tmp_path) == [0]


def test_the_system_moves_mapped_pages(mapped: NDArray[Any]) -> None:
    (node, *_) = numa.memory_nodes()
    pages = numa._pages(mapped)
    assert len(pages) == PAGES
    places = np.full(PAGES, node, np.int32)
    with suppress(OptionError):  # Docker's default profile refuses
        places = numa._move(pages, places)
    assert (places == node).all()


def test_pages_lie_on_all_nodes_in_turn(mapped: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    where: dict[int, int] = {}

    def move(pages: NDArray[np.int64], targets: NDArray[np.int32]) -> NDArray[np.int32]:
        where.update(zip(pages.tolist(), targets.tolist(), strict=True))
        return targets

    monkeypatch.setattr(numa, "_move", move)
    monkeypatch.setattr(numa, "PAGES_AT_ONCE", 7)
    numa.interleave([mapped], [0, 2, 5])
    assert len(where) == PAGES
    blocks = {address // numa.BLOCK: {where[page] for page in where if page // numa.BLOCK == address // numa.BLOCK}
              for address in where}  # fmt: skip
    assert all(len(nodes) == 1 for nodes in blocks.values())
    order = [blocks[block].pop() for block in sorted(blocks)]
    assert all(order[i + 3] == order[i] for i in range(len(order) - 3))
    assert set(order[:3]) == {0, 2, 5}


def test_pages_that_others_use_stay_and_a_warning_says_how_many(
    mapped: NDArray[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def move(pages: NDArray[np.int64], targets: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.where(np.arange(len(targets)) % 4, targets, -errno.EACCES).astype(np.int32)

    monkeypatch.setattr(numa, "_move", move)
    numa.interleave([mapped], [0, 1])
    assert "25 % of the weights stay on their memory node" in caplog.text


def test_one_node_leaves_everything_and_says_so(mapped: NDArray[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        numa.interleave([mapped], [0])
    assert "this machine has one memory node" in caplog.text


def test_a_system_that_refuses_is_an_error_that_names_the_option(
    mapped: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numa, "_MOVE_PAGES", {})
    with pytest.raises(OptionError, match="numa: this system moves no memory"):
        numa.interleave([mapped], [0, 1])
    monkeypatch.undo()
    with pytest.raises(OptionError, match="numa: the system does not let this process move memory: "):
        numa.interleave([mapped], [0, 1000])
