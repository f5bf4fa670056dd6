"""What this machine grants the process: threads worth starting, memory and how much is in use, the processor's name.

Read from Linux's `/proc` and `/sys`; elsewhere the figures fall back to what Python knows. It measures no speed
(`benchmark.py` does) and imports nothing but the standard library.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Threads to use: the physical cores that affinity and the cgroup's CPU quota (v1 or v2) allow, at least 1.

    Sibling hyper-threads share the units that the kernels keep busy, so they count once. A quota of 1.5 CPUs counts as
    2: both threads are then throttled together, which still beats one.

    Parameters
    ----------
    root : Path
        Where `proc` and `sys` are found; tests pass a made-up tree.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = physical_cores(allowed, root)
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def physical_cores(cpus: Collection[int], root: Path = ROOT) -> int:
    """Number of physical cores behind the logical `cpus`; each counts as one where the kernel doesn't say."""
    topology = root / "sys/devices/system/cpu"
    return len({read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def cpu_quota(root: Path = ROOT) -> float | None:
    """The tightest CPU quota of the process's control groups, in CPUs; None without one."""
    quotas = (_quota_v2(folder) if version == 2 else _quota_v1(folder) for version, folder in _groups("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Yield (cgroup version, folder) of the process's groups that a controller may limit, their ancestors included."""
    groups = {}  # version -> path of the process's group
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            groups[1 if controllers else 2] = PurePosixPath(path)
    for line in read(root / "proc/self/mountinfo").splitlines():
        # 36 35 98:0 /root /mount/point options ... - type source super-options (proc_pid_mountinfo(5))
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        if version not in groups or (version == 1 and controller not in options.split(",")):
            continue
        point = root / mount.split()[4].lstrip("/")
        # In a container the path may be the host's: its folders are then missing, and the mount point holds the limit.
        for folder in (groups[version], *groups[version].parents):
            yield version, point / str(folder).lstrip("/")


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = read(folder / "cpu.max").partition(" ")
    return None if quota in ("", "max") else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int(read(folder / "cpu.cfs_quota_us") or -1)
    return None if quota <= 0 else quota / int(read(folder / "cpu.cfs_period_us"))


def usable_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that the process may use: the machine's, or less if its control groups say so.

    None where the system doesn't say.
    """
    files = {1: "memory.limit_in_bytes", 2: "memory.max"}
    limits = (read(folder / files[version]) for version, folder in _groups("memory", root))
    total = re.search(r"^MemTotal:\s*(\d+) kB$", read(root / "proc/meminfo"), re.MULTILINE)
    found = [int(limit) for limit in limits if limit.isdigit()] + ([int(total[1]) * 1024] if total else [])
    return min(found, default=None)


def free_memory(root: Path = ROOT) -> int:
    """Bytes of memory that the process may use and that nobody uses; 0 where the system doesn't say.

    What the system keeps of files counts as free.
    """
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", read(root / "proc/meminfo"), re.MULTILINE)
    return min(int(available[1]) * 1024 if available else 0, usable_memory(root) or 0)


def memory_in_use(root: Path = ROOT) -> int:
    """Bytes of this process that are in memory now, mapped files included; 0 where the system doesn't say."""
    return _status("VmRSS", root)


def peak_memory(root: Path = ROOT) -> int:
    """The most bytes of this process that were in memory at once, mapped files included."""
    peak = _status("VmHWM", root)
    if not peak and sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def cpu_name(root: Path = ROOT) -> str:
    """Name of the processor as the system spells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", read(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _status(field: str, root: Path) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", read(root / "proc/self/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def numbers(text: str) -> set[int]:
    """Return the numbers of a list as the kernel writes them: `0-3,8`."""
    ends = (part.partition("-") for part in text.strip().split(",") if part.strip())
    return {number for first, _, last in ends for number in range(int(first), int(last or first) + 1)}


def read(path: Path) -> str:
    """Return the stripped text of a file of the kernel's, or "" where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
