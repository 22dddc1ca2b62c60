"""Processors and huge pages as KubeVirt has them."""

from __future__ import annotations

from typing import Any

from kboot.machine_spec import MachineSpec

#: The most cores in a socket; beyond, there are more sockets. q35 takes 255 of them and more.
_CORES_PER_SOCKET = 64


def fault(spec: MachineSpec) -> str | None:
    """None if a cluster can have such a machine, or else why not."""
    if spec.numa > 1:
        return (
            "on a cluster a machine has the NUMA nodes of its node, with dedicated processors and "
            "huge pages: domain.cpu.numa.guestMappingPassthrough in --cluster-patch"
        )
    if spec.nics > 1:
        return (
            "a pod has one network: more cards need networks of Multus, by --cluster-patch "
            "(networks, domain.devices.interfaces)"
        )
    if spec.hugepages_mib and spec.memory_mib % spec.hugepages_mib:
        return f"the memory has to be a multiple of a huge page, {spec.hugepages_mib} MiB: --memory"
    return None


def cpu(spec: MachineSpec) -> dict[str, int]:
    """As they are to be arranged, or else in as few sockets as possible; none to be plugged in.

    KubeVirt would keep room for four times as many (1.9), more than a machine can have.
    """
    if topology := spec.topology:
        return {
            "sockets": topology.sockets,
            "maxSockets": topology.sockets,
            "cores": topology.cores,
            "threads": topology.threads,
        }
    for sockets in range(-(-spec.cpus // _CORES_PER_SOCKET), spec.cpus + 1):
        if spec.cpus % sockets == 0:
            return {
                "sockets": sockets,
                "maxSockets": sockets,
                "cores": spec.cpus // sockets,
                "threads": 1,
            }
    raise AssertionError(f"{spec.cpus} processors")


def memory(spec: MachineSpec) -> dict[str, Any]:
    """The guest's memory, and the pages behind it."""
    found: dict[str, Any] = {"guest": f"{spec.memory_mib}Mi"}
    if spec.hugepages_mib:
        found["hugepages"] = {"pageSize": f"{spec.hugepages_mib}Mi"}
    return found
