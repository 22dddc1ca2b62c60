"""How many machines this host can run at once, within what it has and what we may have of it.

In a container, processors and memory are limited by control groups (cgroups(7)), of version 1 or 2;
neither ``sched_getaffinity`` nor ``/proc/meminfo`` knows of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

#: QEMU itself, its translated code under emulation, and the worker that drives it.
_OVERHEAD_MIB = 256

#: Of the memory that is available; the rest is for the page cache, where saved machines lie.
_SHARE = 0.8

#: Where files are looked for; a test has others.
_ROOT = Path("/")


def workers(*, cpus: int, available_mib: int, machine_cpus: int, machine_mib: int) -> int:
    """One machine each, so that every processor of a machine has one, and all fits into memory."""
    by_memory = int(available_mib * _SHARE) // (machine_mib + _OVERHEAD_MIB)
    return max(1, min(cpus // machine_cpus, by_memory))


def standbys(
    *, cpus: int, available_mib: int, workers: int, machine_cpus: int, machine_mib: int
) -> int:
    """How many machines may stand by while each of `workers` uses one.

    Each takes a processor while it is restored, and its memory. The machines in use may still take
    the memory that is theirs.
    """
    by_memory = int(available_mib * _SHARE) // (machine_mib + _OVERHEAD_MIB) - workers
    return max(0, min(cpus - workers * machine_cpus, by_memory))


def host_cpus(root: Path = _ROOT) -> int:
    """The processors that this process may use: by its affinity, and by its groups' quotas."""
    cpus = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        quota = _numbers(group / "cpu.max") or [
            *_numbers(group / "cpu.cfs_quota_us"),
            *_numbers(group / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2:
            cpus = min(cpus, quota[0] / quota[1])
    return max(1, int(cpus))


def host_available_mib(root: Path = _ROOT) -> int:
    """The memory that can be had without swapping, on the host and in our groups."""
    # MemAvailable: since Linux 3.14.
    available = _entry(root / "proc/meminfo", "MemAvailable:") * 1024
    for group in _groups(root, "memory"):
        limit = _numbers(group / "memory.max") or _numbers(group / "memory.limit_in_bytes")
        used = _numbers(group / "memory.current") or _numbers(group / "memory.usage_in_bytes")
        if limit and used:
            # Files that nobody has touched for long are counted as used, and given up at need.
            statistics = group / "memory.stat"
            idle = _entry(statistics, "total_inactive_file") or _entry(statistics, "inactive_file")
            available = min(available, max(0, limit[0] - used[0] + idle))
    return available // (1 << 20)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of the groups that limit us in this way, ours and all those above it."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        # In version 2, there is one hierarchy for all, and its controllers are not named.
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        group = top / path.strip("/")
        # A container may see its own group mounted as the top, and its path as the host has it.
        yield from (each for each in (group, *group.parents) if each.is_relative_to(top))


def _numbers(path: Path) -> list[int]:
    """The numbers that a file begins with; none if it says ``max``, or is not there."""
    try:
        words = path.read_text(encoding="ascii").split()
    except OSError:
        return []
    found = []
    for word in words:
        if not word.isdecimal():
            break
        found.append(int(word))
    return found


def _entry(path: Path, name: str) -> int:
    """The number behind a name at the beginning of a line; 0 if there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = (line.split() for line in lines)
    return next((int(words[1]) for words in found if words[:1] == [name]), 0)
