"""Cores, quotas and memory, read from made-up /proc and /sys trees and from this machine's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quantkit.engine import machine

CPUS = sorted(os.sched_getaffinity(0))
CGROUP2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
CGROUP1_MOUNTS = (
    "30 23 0:27 / /sys/fs/cgroup/cpuset rw shared:10 - cgroup cgroup rw,cpuset\n"
    "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def siblings(groups: list[list[int]]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": ",".join(map(str, group)) + "\n"
        for group in groups
        for cpu in group
    }


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    root = write(tmp_path, siblings([[0, 2], [1, 3]]))
    assert machine.physical_cores({0, 1, 2, 3}, root) == 2
    assert machine.physical_cores({0, 2}, root) == 1
    assert machine.physical_cores({0, 1}, root) == 2


def test_cores_without_topology_are_the_logical_ones(tmp_path: Path) -> None:
    assert machine.physical_cores({0, 1, 2}, tmp_path) == 3
    assert machine.usable_cores(tmp_path) == len(CPUS)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/a/b/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),  # a container that sees the host's path
        ({"sys/fs/cgroup/other/cpu.max": "50000 100000\n"}, None),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    own = {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": CGROUP2_MOUNT}
    assert machine.cpu_quota(write(tmp_path, own | files)) == quota


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("300000", 3.0)])
def test_quota_of_cgroup_v1(tmp_path: Path, quota: str, expected: float | None) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpuset:/\n3:cpu,cpuacct:/docker/a:b\n0::/\n",
            "proc/self/mountinfo": CGROUP1_MOUNTS,
            "sys/fs/cgroup/cpu,cpuacct/docker/a:b/cpu.cfs_quota_us": quota + "\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a:b/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.cpu_quota(root) == expected


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1.0, 1), (1000.0, len(CPUS))])
def test_the_quota_limits_the_cores(tmp_path: Path, quota: float, cores: int) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": CGROUP2_MOUNT,
        "sys/fs/cgroup/cpu.max": f"{int(quota * 100000)} 100000\n",
    }
    root = write(tmp_path, files | siblings([[cpu] for cpu in CPUS]))
    assert machine.usable_cores(root) == cores


def test_affinity_limits_the_cores() -> None:
    try:
        os.sched_setaffinity(0, CPUS[:1])
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, CPUS)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal:       8000 kB\nMemFree: 1 kB\n"}, 8_192_000),
        ({"proc/meminfo": "MemTotal:       8000 kB\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 8_192_000),
        ({"proc/meminfo": "MemTotal:       8000 kB\n", "sys/fs/cgroup/a/memory.max": "4000000\n"}, 4_000_000),
        ({"sys/fs/cgroup/a/b/memory.max": "5000\n", "sys/fs/cgroup/memory.max": "4000\n"}, 4000),
    ],
)
def test_usable_memory(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    own = {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": CGROUP2_MOUNT}
    assert machine.usable_memory(write(tmp_path, own | files)) == expected


def test_usable_memory_of_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker\n",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n",
        "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine.usable_memory(write(tmp_path, files)) == 3000


def test_memory_counts_what_is_touched() -> None:
    before = machine.memory_in_use()
    touched = np.ones(256 << 20, np.uint8)
    grown = machine.memory_in_use() - before
    # Other tests' memory may be given back meanwhile.
    assert 192 << 20 < grown < 320 << 20
    assert machine.peak_memory() >= before + grown - (8 << 20)
    assert touched[-1] == 1


def test_processor_name(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Example 9000 @ 3 GHz\nflags\t: a b\n"})
    assert machine.cpu_name(root) == "Example 9000 @ 3 GHz"
    assert machine.cpu_name()
