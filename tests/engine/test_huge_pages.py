"""Memory on huge pages, and models whose weights lie there: the same weights, and the same logits."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from quantkit import convert, load_model
from quantkit.engine.binding import bind
from quantkit.engine.huge_pages import ALIGNMENT, HUGE_PAGE, CopiedWeights, huge_memory, is_worth_a_copy
from quantkit.engine.numa import POLICIES
from quantkit.errors import PackedModelError
from quantkit.formats.packed import PackedModel
from quantkit.generation import loading

ENABLED = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("huge")
    convert(
        tiny.checkpoint(folder / "tiny"), folder / "packed", overrides=[(r"layers\.0\.", "int8"), ("o_proj", "f16")]
    )
    return folder / "packed"


def machine(root: Path, enabled: str, free: int) -> Path:
    """The files of a machine with so many bytes of free memory."""
    (root / ENABLED).parent.mkdir(parents=True)
    (root / ENABLED).write_text(enabled)
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: {2 * free // 1024} kB\nMemAvailable: {free // 1024} kB\n")
    return root


@pytest.mark.parametrize("size", [1, HUGE_PAGE, HUGE_PAGE + 1])
def test_memory_is_zero_and_begins_on_a_page(size: int) -> None:
    memory = huge_memory(size)
    assert memory.shape == (size,)
    assert memory.ctypes.data % HUGE_PAGE == 0
    memory[0] = memory[-1] = 1
    assert np.count_nonzero(memory) == min(size, 2)


@pytest.mark.parametrize("enabled", ["always [madvise] never", "[always] madvise never"])
def test_half_of_the_free_memory_is_enough(tmp_path: Path, enabled: str) -> None:
    root = machine(tmp_path, enabled, free=100 * HUGE_PAGE)
    assert is_worth_a_copy(HUGE_PAGE, root)
    assert is_worth_a_copy(50 * HUGE_PAGE, root)
    assert not is_worth_a_copy(50 * HUGE_PAGE + 1, root)
    assert not is_worth_a_copy(HUGE_PAGE - 1, root)


def test_what_control_groups_allow_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "always [madvise] never", free=100 * HUGE_PAGE)
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/box\n")
    (root / "proc/self/mountinfo").write_text("35 24 0:30 / /cgroup rw - cgroup2 cgroup rw\n")
    (root / "cgroup/box").mkdir(parents=True)
    (root / "cgroup/box/memory.max").write_text(f"{10 * HUGE_PAGE}\n")
    assert is_worth_a_copy(5 * HUGE_PAGE, root)
    assert not is_worth_a_copy(6 * HUGE_PAGE, root)


@pytest.mark.parametrize("enabled", ["always madvise [never]", ""])
def test_a_system_without_huge_pages_keeps_the_map(tmp_path: Path, enabled: str) -> None:
    assert not is_worth_a_copy(HUGE_PAGE, machine(tmp_path / "a", enabled, free=100 * HUGE_PAGE))
    assert not is_worth_a_copy(HUGE_PAGE, tmp_path / "nothing")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_is_aligned_and_holds_the_same_bytes(packed: Path, threads: int) -> None:
    bound = bind(PackedModel(packed))
    copies = CopiedWeights(bound.weights, bound.program.tensors, threads)
    assert copies.config == bound.weights.config
    ends = []
    for name in bound.program.tensors:
        copy, mapped = copies.tensor(name), bound.weights.tensor(name)
        assert (copy.kind, copy.shape) == (mapped.kind, mapped.shape)
        pairs = [(copy.data, mapped.data), (copy.row_scales, mapped.row_scales)]
        for found, wanted in pairs:
            if wanted is None:
                assert found is None
                continue
            assert found is not None
            assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
            assert found.ctypes.data % ALIGNMENT == 0
            assert not found.flags.writeable
            ends.append((found.ctypes.data, found.nbytes))
    ends.sort()
    assert all(first + size <= second for (first, size), (second, _) in pairwise(ends))


def test_logits_are_the_same(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(loading, "is_worth_a_copy", lambda size: not asked.append(size))  # type: ignore[func-returns-value]
    logits = []
    options: list[dict[str, Any]] = [{}, {"mmap": True}, {"numa": POLICIES[0]}]
    for each in options:
        with load_model(packed, threads=2, **each) as model:
            logits.append(model(range(20)).tobytes())
    assert asked == [PackedModel(packed).nbytes]
    assert logits[0] == logits[1] == logits[2]


def test_a_checkpoint_stays_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(loading, "is_worth_a_copy", asked.append)
    load_model(tiny.checkpoint(tmp_path / "tiny")).close()
    assert not asked


def test_a_truncated_file_is_an_error(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "cut"))
    bound = bind(PackedModel(folder))
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(4096)
    with pytest.raises(PackedModelError, match=r"model\.safetensors"):
        CopiedWeights(bound.weights, bound.program.tensors, 2)
