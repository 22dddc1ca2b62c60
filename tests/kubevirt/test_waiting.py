"""What keeps a machine from starting for a while is waited for; what does not pass is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import KubevirtBackend, open_kubevirt, watches
from kboot.kubevirt.diagnosis import Obstacle
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.powered import powered_on
from tests.kubevirt.talking import talking

IPXE = ClusterConfig(cluster_ipxe_disk="pvc:ipxe")


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def roomy_afterwards(cluster: Cluster) -> Iterator[None]:
    room, kubelet, disks = cluster.virt.room, cluster.kubelet, cluster.virt.disks
    before = (room.node_mib, cluster.virt.ending_s, kubelet.binding_s)
    yield
    room.node_mib, cluster.virt.ending_s, kubelet.binding_s = before
    room.quota_pods = room.scale_up_s = None
    disks.claims.clear()
    for _ in Deadline(20).poll(0.05):
        if not cluster.call(lambda: list(cluster.store.find("pods"))):
            break
    disks.binding_s.clear()


def patient_for(monkeypatch: pytest.MonkeyPatch, obstacle: Obstacle, seconds: float) -> None:
    """How long kboot waits for such an obstacle where nothing is known to be under way."""
    monkeypatch.setitem(watches.GRACE_S, obstacle, seconds)


def two_machines_one_after_the_other(backend: KubevirtBackend) -> None:
    with powered_on(backend, "first", memory_mib=13 << 10) as vm:
        vm.check()
    with powered_on(backend, "second", memory_mib=13 << 10) as vm:
        vm.check()


def test_the_next_machine_waits_until_the_last_one_has_ended(
    cluster: Cluster, backend: KubevirtBackend, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.virt.room.node_mib = 24 << 10
    cluster.virt.ending_s = 1.5
    two_machines_one_after_the_other(backend)
    (said,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "machine kboot-" in said
    assert "waits: 1 pod of earlier machines or runs still ending (0/1 nodes" in said


def test_the_first_machine_waits_for_that_of_a_run_that_has_just_ended(cluster: Cluster) -> None:
    cluster.virt.room.node_mib = 24 << 10
    for _ in range(2):
        with (
            open_kubevirt(ClusterConfig()) as backend,
            powered_on(backend, memory_mib=13 << 10) as vm,
        ):
            vm.check()


def test_a_quota_that_is_held_by_what_is_ending_is_waited_for(
    cluster: Cluster, backend: KubevirtBackend, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.virt.room.quota_pods = 1
    cluster.virt.ending_s = 1.5
    two_machines_one_after_the_other(backend)
    # The boot server's pod as well, which the API server refuses by itself.
    with backend.serve(Deadline(20)) as server:
        server.check()
    waits = [each.getMessage() for each in caplog.records if "still ending" in each.getMessage()]
    assert [text.partition(" ")[0] for text in waits] == ["machine", "the"]
    assert all("exceeded quota" in text for text in waits)


def test_a_machine_waits_for_the_node_that_is_added_for_it(
    cluster: Cluster,
    backend: KubevirtBackend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.virt.room.node_mib = 1 << 10
    cluster.virt.room.scale_up_s = (0.2, 2.0)
    patient_for(monkeypatch, Obstacle.ROOM, 1.0)
    with powered_on(backend, memory_mib=2 << 10) as vm:
        vm.check()
    assert "a node is being added" in caplog.text


def test_the_patience_is_in_seconds() -> None:
    assert all(seconds <= 15 for seconds in watches.GRACE_S.values())


def test_a_machine_that_nobody_makes_room_for_is_told_when_patience_ends(
    cluster: Cluster, backend: KubevirtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.virt.room.node_mib = 1 << 10
    patient_for(monkeypatch, Obstacle.ROOM, 1.0)
    deadline = Deadline(120)
    with (
        pytest.raises(ClusterError, match=r"finds no node: .*; lower memory or cpus"),
        powered_on(backend, memory_mib=2 << 10, deadline=deadline),
    ):
        pass
    assert not deadline.expired


def test_a_quota_that_nobody_frees_is_told_when_patience_ends(
    cluster: Cluster, backend: KubevirtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.virt.room.quota_pods = 0
    patient_for(monkeypatch, Obstacle.QUOTA, 1.0)
    deadline = Deadline(120)
    with (
        pytest.raises(ClusterError, match="a quota of namespace team"),
        powered_on(backend, deadline=deadline),
    ):
        pass
    assert not deadline.expired


def test_claims_that_are_bound_with_their_first_pod_are_waited_for(
    cluster: Cluster, backend: KubevirtBackend, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.kubelet.binding_s = 0.8
    backend.settings = replace(IPXE, cluster_claim="artifacts")
    with backend.serve(Deadline(20)) as server:
        server.check()
    cluster.virt.disks.claims["ipxe"] = cluster.directory
    cluster.virt.disks.binding_s["ipxe"] = 0.8
    with powered_on(backend, firmware="uefi") as vm:
        vm.check()
    assert [" waits: a volume claim is being bound (" in each for each in caplog.messages] == [
        True,
        True,
    ]


def test_a_claim_that_is_never_bound_has_its_own_remedy(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    backend.settings = IPXE
    cluster.virt.disks.claims["ipxe"] = cluster.directory
    cluster.virt.disks.binding_s["ipxe"] = 600
    warning = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "ipxe.1", "namespace": "team"},
        "involvedObject": {"kind": "PersistentVolumeClaim", "name": "ipxe"},
        "type": "Warning",
        "reason": "ProvisioningFailed",
        "message": "the disks are full",
    }
    cluster.call(lambda: cluster.store.create("events", warning))
    spec = MachineSpec(name="m", boot_file="http://none/", firmware="uefi")
    with pytest.raises(ClusterError) as caught, backend.power_on(spec, Deadline(2)):
        pass
    text = str(caught.value)
    assert "waits for a volume claim that is not bound" in text
    assert "kubectl describe pvc ipxe" in text
    assert "the cluster says about claim ipxe: the disks are full (waited " in text
    assert "lower memory" not in text


def test_a_claim_that_is_not_there_is_told_at_once(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    assert cluster.virt.disks.claims == {}
    backend.settings = IPXE
    deadline = Deadline(120)
    with (
        pytest.raises(
            ClusterError, match=r"no volume claim team/ipxe; create it.*--cluster-ipxe-disk"
        ),
        powered_on(backend, firmware="uefi", deadline=deadline),
    ):
        pass
    assert not deadline.expired
