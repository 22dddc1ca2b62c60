"""Processors, NUMA nodes and the memory behind them, as QEMU's options."""

from __future__ import annotations

from pathlib import Path

from kboot.config import cpu_nodes, memory_nodes
from kboot.machine_spec import MachineSpec

_PAGES = Path("/sys/kernel/mm/hugepages")


def words(spec: MachineSpec) -> list[str]:
    """All that is said of processors and memory."""
    return [*smp_words(spec), "-m", f"{spec.memory_mib}M", *memory_words(spec)]


def smp_words(spec: MachineSpec) -> list[str]:
    """How many processors, and how they are arranged."""
    topology = spec.topology
    if topology is None:
        return ["-smp", str(spec.cpus)]
    parts = f"sockets={topology.sockets},cores={topology.cores},threads={topology.threads}"
    return ["-smp", f"{spec.cpus},{parts}"]


def memory_words(spec: MachineSpec) -> list[str]:
    """The NUMA nodes and the memory of each; nothing where QEMU's own memory will do."""
    if spec.numa == 1 and not spec.hugepages_mib:
        return []
    found: list[str] = []
    sizes = memory_nodes(spec.memory_mib, spec.numa)
    for node, ((first, last), size) in enumerate(
        zip(cpu_nodes(spec.cpus, spec.numa), sizes, strict=True)
    ):
        kind = "memory-backend-ram"
        if spec.hugepages_mib:
            kind = f"memory-backend-memfd,hugetlb=on,hugetlbsize={spec.hugepages_mib}M"
        found += ["-object", f"{kind},id=node{node},size={size}M"]
        found += ["-numa", f"node,nodeid={node},cpus={first}-{last},memdev=node{node}"]
    return found


def fault(spec: MachineSpec, pages: Path = _PAGES) -> str | None:
    """None if this host has what the memory of such a machine is made of, or else why not."""
    if not spec.hugepages_mib:
        return None
    size_kib = spec.hugepages_mib << 10
    directory = pages / f"hugepages-{size_kib}kB"
    if not directory.is_dir():
        there = ", ".join(sorted(each.name for each in pages.glob("hugepages-*"))) or "none"
        return f"this host has no huge pages of {spec.hugepages_mib} MiB (it has: {there})"
    if any(size % spec.hugepages_mib for size in memory_nodes(spec.memory_mib, spec.numa)):
        return (
            f"the memory of each node has to be a multiple of a huge page, {spec.hugepages_mib} "
            "MiB; choose another --memory"
        )
    needed = spec.memory_mib // spec.hugepages_mib
    free = int((directory / "free_hugepages").read_text(encoding="ascii"))
    if free < needed:
        return (
            f"it needs {needed} huge pages of {spec.hugepages_mib} MiB, and {free} are free: as "
            f"root, echo {needed} > {directory}/nr_hugepages"
        )
    return None


def snapshot_fault(spec: MachineSpec) -> str | None:
    """None if the memory of such a machine can be saved, or else why not."""
    if spec.numa > 1 or spec.hugepages_mib:
        return "its memory lies in NUMA nodes or huge pages, which kboot does not save"
    return None
