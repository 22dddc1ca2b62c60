"""Processors, NUMA nodes and huge pages: as they are declared, and what backends make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kboot.config import ClusterConfig, Config, cpu_nodes, read_cpus
from kboot.errors import ConfigError
from kboot.kernel import read_kernel
from kboot.kubevirt import manifests, vm_manifest
from kboot.kubevirt import processors as on_cluster
from kboot.machine import settings_for
from kboot.machine_spec import MachineSpec, Topology
from kboot.qemu import processors
from kboot.session import open_session
from tests.kubevirt import schema
from tests.kubevirt.recordings import needs_recordings

SPEC = MachineSpec(boot_file="http://kboot/boot.ipxe")


def test_processors_are_a_number_or_an_arrangement() -> None:
    assert read_cpus(Config(cpus=4).cpus) == (4, None)
    wanted = Config(cpus="threads=2, sockets=2,cores=4").cpus
    assert wanted == "sockets=2,cores=4,threads=2"
    assert read_cpus(wanted) == (16, Topology(sockets=2, cores=4, threads=2))
    assert read_cpus(Config(cpus="cores=3").cpus) == (3, Topology(cores=3))


@pytest.mark.parametrize("wrong", ["sockets=0", "cores=2,cores=3", "dies=2", "cores=300", "many"])
def test_another_arrangement_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="is not "):
        Config(cpus=wrong)


def test_qemu_is_told_the_arrangement_and_the_nodes() -> None:
    spec = replace(
        SPEC, cpus=8, topology=Topology(sockets=2, cores=2, threads=2), numa=2, memory_mib=1025
    )
    assert processors.smp_words(spec) == ["-smp", "8,sockets=2,cores=2,threads=2"]
    assert processors.memory_words(spec) == [
        *("-object", "memory-backend-ram,id=node0,size=513M"),
        *("-numa", "node,nodeid=0,cpus=0-3,memdev=node0"),
        *("-object", "memory-backend-ram,id=node1,size=512M"),
        *("-numa", "node,nodeid=1,cpus=4-7,memdev=node1"),
    ]
    assert "kboot does not save" in str(processors.snapshot_fault(spec))
    assert processors.memory_words(SPEC) == []
    assert processors.snapshot_fault(SPEC) is None


def test_huge_pages_that_are_not_there_are_told_with_the_remedy(tmp_path: Path) -> None:
    wanted = replace(SPEC, hugepages_mib=2, memory_mib=64)
    assert "no huge pages of 2 MiB (it has: none)" in str(processors.fault(wanted, tmp_path))
    directory = tmp_path / "hugepages-2048kB"
    directory.mkdir()
    (directory / "free_hugepages").write_text("31\n")
    assert f"echo 32 > {directory}/nr_hugepages" in str(processors.fault(wanted, tmp_path))
    (directory / "free_hugepages").write_text("32\n")
    assert processors.fault(wanted, tmp_path) is None
    odd = replace(wanted, memory_mib=65)
    assert "multiple of a huge page, 2 MiB" in str(processors.fault(odd, tmp_path))
    assert "hugetlbsize=2M" in processors.memory_words(wanted)[1]


@needs_recordings
def test_a_cluster_has_both_in_fields_of_its_own() -> None:
    spec = replace(SPEC, cpus=8, topology=Topology(sockets=2, cores=4), hugepages_mib=2)
    run = manifests.Run(identifier="r123456789", namespace="team", owner_uid="c0ffee")
    made = vm_manifest.manifest(spec, run, ClusterConfig())
    assert schema.faults(made) == []
    domain: dict[str, Any] = made["spec"]["template"]["spec"]["domain"]
    assert domain["cpu"] == {"sockets": 2, "maxSockets": 2, "cores": 4, "threads": 1}
    assert domain["memory"] == {"guest": "512Mi", "hugepages": {"pageSize": "2Mi"}}
    assert "guestMappingPassthrough" in str(on_cluster.fault(replace(SPEC, cpus=2, numa=2)))


def test_more_nodes_than_processors_are_refused(quick_kernel: Path) -> None:
    with pytest.raises(ConfigError, match="2 nodes need a processor each, and the machine has 1"):
        settings_for(read_kernel(quick_kernel), Config(numa=2))


#: Its cards, each with the address that DHCP gives it.
CARDS = """
for each in /sys/class/net/e*; do
  card=${each##*/}; ip link set $card up
  udhcpc -n -q -i $card -s /usr/libexec/kboot/dhcp >/dev/null 2>&1
  set -- $(ip -4 addr show dev $card | grep inet); echo $(cat $each/address) $2
done
"""


def test_the_guest_has_the_nodes_the_arrangement_and_the_cards(
    debian_kernel: Path, tmp_path: Path
) -> None:
    config = Config(
        kernel=str(debian_kernel),
        module=("e1000e",),
        cpus="sockets=2,cores=1,threads=2",
        numa=2,
        nics=3,
        memory_mib=512,
        isolation="none",
    )
    with open_session(config, evidence=tmp_path / "evidence") as session:
        machine = session.machine(session.settings(config), name="numa")
        said = machine.guest.succeed(
            "cd /sys/devices/system; cat node/online node/node0/cpulist node/node1/cpulist; "
            "cat cpu/cpu?/topology/physical_package_id; nproc"
        )
        memory = machine.guest.succeed("grep -h MemTotal /sys/devices/system/node/node?/meminfo")
        cards = machine.guest.succeed(CARDS, timeout=60)
    assert said.split() == ["0-1", "0-1", "2-3", *"0011", "4"]
    # In equal parts, of which the kernel and the firmware take some for themselves.
    assert [128 < int(line.split()[3]) >> 10 <= 256 for line in memory.splitlines()] == [True, True]
    # Each is on a network of its own, and the first one boots.
    assert cards.splitlines() == [
        "52:54:00:6b:62:01 10.0.2.15/24",
        "52:54:00:6b:62:02 10.0.3.15/24",
        "52:54:00:6b:62:03 10.0.4.15/24",
    ]


@pytest.mark.parametrize("count", range(1, 18))
def test_each_node_has_processors_and_each_processor_a_node(count: int) -> None:
    for nodes in range(1, count + 1):
        found = cpu_nodes(count, nodes)
        sizes = [last - first + 1 for first, last in found]
        assert [at for first, last in found for at in range(first, last + 1)] == [*range(count)]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
