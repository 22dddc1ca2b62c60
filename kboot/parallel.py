"""How many machines this host can run at once."""

from __future__ import annotations

import os
from pathlib import Path

#: QEMU itself, its translated code under emulation, the worker that drives it, and its server.
_OVERHEAD_MIB = 256

#: Of the memory that is available; the rest is for the page cache, where saved machines lie.
_SHARE = 0.8


def workers(*, cpus: int, available_mib: int, machine_cpus: int, machine_mib: int) -> int:
    """One machine each, so that every processor of a machine has one, and all fits into memory."""
    by_memory = int(available_mib * _SHARE) // (machine_mib + _OVERHEAD_MIB)
    return max(1, min(cpus // machine_cpus, by_memory))


def host_cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def host_available_mib() -> int:
    """The memory that can be had without swapping: ``MemAvailable`` in proc(5)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) // 1024
    raise AssertionError("/proc/meminfo has MemAvailable since Linux 3.14")
