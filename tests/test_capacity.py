"""kboot.capacity: as many workers as there is room for machines, in a container too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kboot import capacity


@pytest.mark.parametrize(
    ("cpus", "available_mib", "machine_cpus", "machine_mib", "expected"),
    [
        (8, 64_000, 1, 512, 8),
        (8, 64_000, 4, 512, 2),
        (64, 8_000, 1, 1792, 3),
        (1, 64_000, 4, 512, 1),
        (8, 100, 1, 512, 1),
    ],
    ids=["a processor each", "four each", "memory is short", "few processors", "no memory"],
)
def test_so_many_machines_as_have_room(
    cpus: int, available_mib: int, machine_cpus: int, machine_mib: int, expected: int
) -> None:
    found = capacity.workers(
        cpus=cpus,
        available_mib=available_mib,
        machine_cpus=machine_cpus,
        machine_mib=machine_mib,
    )
    assert found == expected


@pytest.mark.parametrize(
    ("cpus", "available_mib", "workers", "machine_cpus", "expected"),
    [
        (2, 64_000, 1, 1, 1),
        (2, 64_000, 2, 1, 0),
        (8, 64_000, 2, 2, 4),
        (8, 64_000, 1, 12, 0),
        (8, 3_000, 2, 1, 1),
        (8, 100, 1, 1, 0),
    ],
    ids=[
        "one to spare",
        "none to spare",
        "big machines",
        "too big",
        "memory is short",
        "no memory",
    ],
)
def test_so_many_machines_stand_by_as_nobody_misses(
    cpus: int, available_mib: int, workers: int, machine_cpus: int, expected: int
) -> None:
    found = capacity.standbys(
        cpus=cpus,
        available_mib=available_mib,
        workers=workers,
        machine_cpus=machine_cpus,
        machine_mib=512,
    )
    assert found == expected


def test_this_host_has_processors_and_memory() -> None:
    assert 1 <= capacity.host_cpus() <= len(os.sched_getaffinity(0))
    assert capacity.host_available_mib() > 64


def make_host(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A host of 8 GiB of which 6 are available, whose control groups have these files."""
    (root / "proc/self").mkdir(parents=True)
    meminfo = "MemTotal:  8388608 kB\nMemFree:  1048576 kB\nMemAvailable:  6291456 kB\n"
    (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_all_of_it_is_ours(tmp_path: Path) -> None:
    files = {
        "user.slice/cpu.max": "max 100000\n",
        "user.slice/memory.max": "max\n",
        "user.slice/memory.current": "1000\n",
    }
    host = make_host(tmp_path, "0::/user.slice\n", files)
    assert capacity.host_cpus(host) == len(os.sched_getaffinity(0))
    assert capacity.host_available_mib(host) == 6144


def test_a_containers_limits_hold_and_those_around_it(tmp_path: Path) -> None:
    """Kubernetes puts the limit of a container below that of its pod."""
    files = {
        "kubepods/pod1/cpu.max": "150000 100000\n",
        "kubepods/pod1/c1/cpu.max": "max 100000\n",
        "kubepods/pod1/memory.max": f"{4 << 30}\n",
        "kubepods/pod1/memory.current": f"{3 << 30}\n",
        "kubepods/pod1/memory.stat": f"anon 77\ninactive_file {1 << 30}\nactive_file 5\n",
        "kubepods/pod1/c1/memory.max": f"{6 << 30}\n",
        "kubepods/pod1/c1/memory.current": f"{2 << 30}\n",
        "kubepods/pod1/c1/memory.stat": "inactive_file 0\n",
    }
    host = make_host(tmp_path, "0::/kubepods/pod1/c1\n", files)
    assert capacity.host_cpus(host) == 1
    assert capacity.host_available_mib(host) == 2048


def test_the_first_version_of_control_groups_counts_as_well(tmp_path: Path) -> None:
    """Docker there mounts the container's own group as the top, whatever its path is called."""
    files = {
        "cpu/cpu.cfs_quota_us": "100000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{2 << 30}\n",
        "memory/memory.usage_in_bytes": f"{1 << 30}\n",
        "memory/memory.stat": "inactive_file 3\ntotal_inactive_file 1048576\n",
    }
    membership = "5:cpuacct,cpu:/docker/f00\n4:memory:/docker/f00\n0::/\n"
    host = make_host(tmp_path, membership, files)
    assert capacity.host_cpus(host) == 1
    assert capacity.host_available_mib(host) == 1025


def test_a_first_version_without_limits_is_one(tmp_path: Path) -> None:
    files = {
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "1000\n",
    }
    host = make_host(tmp_path, "5:cpu:/\n4:memory:/\n", files)
    assert capacity.host_cpus(host) == len(os.sched_getaffinity(0))
    assert capacity.host_available_mib(host) == 6144
