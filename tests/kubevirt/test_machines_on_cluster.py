"""Machines on a cluster: ended from inside and outside, restarted, and refused with the reason."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from kboot.backend import SshMachine
from kboot.errors import ClusterError, GuestError
from kboot.kubevirt import KubevirtBackend
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.powered import eventually, guest_of, powered_on, read_until
from tests.kubevirt.talking import talking


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def test_a_guest_that_powers_off_is_told_as_such(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        machine.check()
        guest_of(cluster).off = True
        eventually(GuestError, "the guest switched the machine off", machine.check)
        while machine.stream.recv(65536):
            pass


def test_a_launcher_pod_that_is_killed_is_the_clusters_fault(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        name = cluster.instance().pod["metadata"]["name"]
        cluster.delete("pods", name)
        eventually(ClusterError, "was ended from outside: its launcher pod is gone", machine.check)
        while machine.stream.recv(65536):
            pass


def test_a_machine_that_is_deleted_by_somebody_is_told_as_such(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        cluster.delete("virtualmachines", cluster.objects("virtualmachines")[0]["metadata"]["name"])
        eventually(ClusterError, "replaced or deleted from outside", machine.check)


def test_a_restart_is_another_instance_with_another_console(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        old, before = machine.stream, cluster.instance().vmi["metadata"]["uid"]
        machine.set_link(up=False)
        assert guest_of(cluster).commands[-1] == "link-down"
        machine.restart()
        assert cluster.instance().vmi["metadata"]["uid"] != before
        assert machine.stream is not old
        assert old.recv(10) == b""
        read_until(machine.stream, b"line 1\r\n")
        machine.check()
        # A cable that was pulled is plugged in again.
        assert "link-down" not in guest_of(cluster).commands
        machine.reset()
        assert "reset" in guest_of(cluster).commands


def test_a_start_whose_answer_is_lost_is_found_done(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    cluster.order("PUT .*/start", done=True)
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 1\r\n")
    cluster.order("PUT .*/start", count=2, status=500)
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 1\r\n")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ('pods "{pod}" is forbidden: exceeded quota: q, used: pods=1', "a quota of namespace team"),
        (
            'pods "{pod}" is forbidden: violates PodSecurity "restricted:latest": seccompProfile',
            "runtimeDefaultProfile: true",
        ),
    ],
)
def test_a_refused_machine_is_told_at_once(
    cluster: Cluster, backend: KubevirtBackend, refusal: str, words: str
) -> None:
    cluster.virt.refusal = refusal
    start = time.monotonic()
    try:
        with pytest.raises(ClusterError, match=words), powered_on(backend):
            pass
    finally:
        cluster.virt.refusal = ""
    assert time.monotonic() - start < 2


def test_a_machine_that_fits_no_node_is_told_at_once(backend: KubevirtBackend) -> None:
    start = time.monotonic()
    with (
        pytest.raises(ClusterError, match="finds no node: 0/1 nodes are available"),
        powered_on(backend, memory_mib=1 << 20),
    ):
        pass
    assert time.monotonic() - start < 2


def test_a_guests_ssh_port_is_reached_through_the_cluster(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine, socket.create_server(("127.0.0.1", 0)) as server:
        assert isinstance(machine, SshMachine)
        address = machine.ssh_address()
        assert machine.ssh_address() == address
        # Nobody listens in the guest: the connection is closed at once.
        with socket.create_connection(address, timeout=5) as near:
            assert near.recv(10) == b""
        cluster.virt.ports[22] = server.getsockname()[1]
        with socket.create_connection(address, timeout=5) as near:
            far, _ = server.accept()
            with far:
                far.sendall(b"SSH-2.0-banner\r\n")
                assert near.recv(100) == b"SSH-2.0-banner\r\n"
                near.sendall(bytes(range(256)) * 1000)
                heard = b""
                while len(heard) < 256_000:
                    heard += far.recv(65536)
                assert heard == bytes(range(256)) * 1000
    cluster.virt.ports.clear()
