"""Machines on the cluster's pod network, named by one Service, and cut off by their link state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from kboot.deadline import Deadline
from kboot.errors import ConfigError
from kboot.kubevirt import KubevirtBackend
from kboot.machine_network import PathCondition
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.powered import powered_on
from tests.kubevirt.talking import talking

MEMBERS = ("control-1", "worker-1", "worker-2")


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def states(cluster: Cluster) -> dict[str, str]:
    """Each member's link state, as its VirtualMachine has it."""
    found = {}
    for vm in cluster.objects("virtualmachines"):
        (interface,) = vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]
        member = vm["spec"]["template"]["metadata"]["labels"]["kboot.dev/member"]
        found[member] = interface.get("state", "up")
    return found


def test_members_are_named_by_one_service_and_cut_off_together(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with backend.open_network(MEMBERS, Deadline(20)) as network, contextlib.ExitStack() as stack:
        machines = {
            member: stack.enter_context(powered_on(backend, member, links=(network.link(member),)))
            for member in MEMBERS
        }
        (service,) = cluster.objects("services")
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        for vm in cluster.objects("virtualmachines"):
            template = vm["spec"]["template"]
            (interface,) = template["spec"]["domain"]["devices"]["interfaces"]
            assert template["spec"]["subdomain"] == service["metadata"]["name"]
            assert template["spec"]["hostname"] in MEMBERS
            assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
            # With any port listed, all others would be closed.
            assert "ports" not in interface
        assert network.search_domain.endswith(".svc.cluster.local")
        assert set(network.addresses()) <= set(MEMBERS)
        workers = {name: machines[name] for name in MEMBERS if name.startswith("worker")}
        pulled = network.set_links(workers, up=False)
        assert pulled.keys() == workers.keys()
        assert states(cluster) == {"control-1": "up", "worker-1": "down", "worker-2": "down"}
        network.set_links(workers, up=True)
        assert set(states(cluster).values()) == {"up"}
        assert "cannot be lost or late" in network.path_fault()
        with pytest.raises(ConfigError, match="cut machines off"):
            network.set_paths({("control-1", "worker-1"): PathCondition(loss=1)})
    assert cluster.objects("services") == []
