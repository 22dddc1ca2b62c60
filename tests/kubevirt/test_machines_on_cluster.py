"""Machines on a cluster: ended from inside and outside, restarted, and refused with the reason."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.backend import SshVirtualMachine
from kboot.cli import main
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, GuestError
from kboot.kubevirt import KubevirtBackend, open_kubevirt
from kboot.kubevirt.api import PODS, VIRTUAL_MACHINES, Client
from kboot.kubevirt.api.client import VM_ACTIONS
from kboot.kubevirt.api.errors import RULES
from kboot.kubevirt.virtual_machine import ClusterVirtualMachine
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


def evict(client: Client, cluster: Cluster) -> None:
    name = cluster.instance().pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = PODS.path(client.namespace, name, "eviction")
    client.json("POST", path, Deadline(5), body=body)


def delete_pod(client: Client, cluster: Cluster) -> None:
    client.delete(PODS, cluster.instance().pod["metadata"]["name"], Deadline(5), grace_s=30)


def delete_vm(client: Client, cluster: Cluster) -> None:
    client.delete(VIRTUAL_MACHINES, cluster.instance().vmi["metadata"]["name"], Deadline(5))


def ask(action: str) -> Callable[[Client, Cluster], None]:
    def act(client: Client, cluster: Cluster) -> None:
        name = cluster.instance().vmi["metadata"]["name"]
        client.json("PUT", VM_ACTIONS.path(client.namespace, name, action), Deadline(5), body={})

    return act


#: What somebody does to a machine, and in which words that is told.
ENDINGS = [
    pytest.param(evict, r"its launcher pod \S+ was evicted, as kubectl drain", id="evict"),
    pytest.param(delete_pod, r"its launcher pod \S+ was deleted", id="delete-pod"),
    pytest.param(delete_vm, r"was deleted from outside \(kubectl delete vm", id="delete-vm"),
    pytest.param(ask("stop"), r"was stopped from outside \(virtctl stop", id="stop"),
    pytest.param(ask("restart"), r"was restarted from outside \(virtctl restart", id="restart"),
]


@pytest.mark.parametrize(("act", "words"), ENDINGS)
def test_what_others_do_to_a_machine_is_not_blamed_on_its_kernel(
    cluster: Cluster,
    backend: KubevirtBackend,
    act: Callable[[Client, Cluster], None],
    words: str,
) -> None:
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 1\r\n")
        machine.check()
        act(backend.client, cluster)
        eventually(ClusterError, words, machine.check)
        while machine.stream.recv(65536):
            pass
        # It is told in the same words when all is over, and nothing is left to tell it by.
        for _ in Deadline(5).poll(0.05):
            if not cluster.call(lambda: list(cluster.store.find("pods"))):
                break
        with pytest.raises(ClusterError, match=words):
            machine.check()


@pytest.mark.parametrize(("act", "words"), ENDINGS)
def test_who_ended_a_machine_is_found_out_when_it_is_over_too(
    cluster: Cluster,
    backend: KubevirtBackend,
    act: Callable[[Client, Cluster], None],
    words: str,
) -> None:
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 1\r\n")
        act(backend.client, cluster)
        # Nobody has looked before its serial line ended.
        while machine.stream.recv(65536):
            pass
        with pytest.raises(ClusterError, match=words):
            machine.check()


def test_a_power_off_stays_the_guests_when_its_pod_is_deleted_later(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        guest_of(cluster).off = True
        eventually(GuestError, "the guest switched the machine off", machine.check)
        delete_pod(backend.client, cluster)
        time.sleep(0.5)
        with pytest.raises(GuestError, match="the guest switched the machine off"):
            machine.check()


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


def test_a_machine_that_powered_itself_off_is_restarted_and_not_reset(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        guest_of(cluster).off = True
        eventually(GuestError, "the guest switched the machine off", machine.check)
        with pytest.raises(GuestError, match="restart it instead of resetting it"):
            machine.reset()
        before = cluster.instance().vmi["metadata"]["uid"]
        machine.restart()
        assert cluster.instance().vmi["metadata"]["uid"] != before
        read_until(machine.stream, b"line 1\r\n")
        machine.check()


def test_a_machine_is_stopped_and_started(cluster: Cluster, backend: KubevirtBackend) -> None:
    with powered_on(backend) as machine:
        assert isinstance(machine, ClusterVirtualMachine)
        machine.start()
        assert cluster.calls("/start") == [_put(machine, "start")]
        machine.set_link(up=False)
        machine.stop()
        assert machine.stream.recv(10) == b""
        # Nobody is at fault that it is off, and to stop it again changes nothing.
        machine.check()
        machine.stop()
        with pytest.raises(ConfigError, match="is switched off: start it, then reset it"):
            machine.reset()
        # The old instance takes its seconds to go: "stop/start already underway" until then.
        machine.start()
        read_until(machine.stream, b"line 1\r\n")
        machine.check()
        assert "link-down" not in guest_of(cluster).commands
        machine.stop()
        for _ in Deadline(5).poll(0.05):
            if not cluster.call(lambda: list(cluster.store.find("virtualmachineinstances"))):
                break
        # Of one that is not there, KubeVirt restarts nothing: it is started.
        machine.restart()
        read_until(machine.stream, b"line 1\r\n")


def test_by_force_a_pod_is_not_waited_for(
    cluster: Cluster, backend: KubevirtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with powered_on(backend) as machine:
        assert isinstance(machine, ClusterVirtualMachine)
        pods = {pod["metadata"]["name"] for pod in cluster.objects("pods")}
        # By itself, none would end while the test lasts.
        monkeypatch.setattr(cluster.virt, "ending_s", 3600.0)
        machine.restart(force=True)
        read_until(machine.stream, b"line 1\r\n")
        machine.check()
        (new,) = {pod["metadata"]["name"] for pod in cluster.objects("pods")} - pods
        machine.stop(force=True)
        deleted = [call for call in cluster.calls("/pods/") if call.startswith("DELETE")]
        assert [call.rpartition("/")[2] for call in deleted] == [*pods, new]
        machine.start()
        read_until(machine.stream, b"line 1\r\n")
        monkeypatch.undo()


def test_a_machine_is_paused_and_goes_on(cluster: Cluster, backend: KubevirtBackend) -> None:
    with powered_on(backend) as machine:
        assert isinstance(machine, ClusterVirtualMachine)
        # The answer is lost, and the second request refused: it is paused already.
        cluster.order("PUT .*/pause", done=True)
        machine.pause()
        machine.pause()
        assert cluster.instance().paused
        machine.check()
        machine.unpause()
        machine.unpause()
        assert not cluster.instance().paused
        assert guest_of(cluster).commands == ["pause", "unpause"]


def _put(machine: ClusterVirtualMachine, action: str) -> str:
    name = machine.description.rpartition(" ")[2]
    return f"PUT /apis/subresources.kubevirt.io/v1/namespaces/team/virtualmachines/{name}/{action}"


def test_a_start_whose_answer_is_lost_is_found_done(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    cluster.order("PUT .*/start", done=True)
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 1\r\n")
    cluster.order("PUT .*/start", count=2, status=500)
    with powered_on(backend, "other") as machine:
        read_until(machine.stream, b"line 1\r\n")


def test_a_refused_machine_is_told_at_once(cluster: Cluster, backend: KubevirtBackend) -> None:
    cluster.virt.refusal = (
        'pods "{pod}" is forbidden: violates PodSecurity "restricted:latest": seccompProfile'
    )
    deadline = Deadline(120)
    try:
        with (
            pytest.raises(ClusterError, match="runtimeDefaultProfile: true"),
            powered_on(backend, deadline=deadline),
        ):
            pass
    finally:
        cluster.virt.refusal = ""
    assert not deadline.expired


ARM64: dict[str, Any] = {"architecture": "aarch64", "firmware": "uefi"}


def test_a_cluster_without_nodes_for_arm64_is_told_at_once(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    deadline = Deadline(120)
    with (
        pytest.raises(ClusterError, match="the cluster has none for arm64"),
        powered_on(backend, deadline=deadline, **ARM64),
    ):
        pass
    assert not deadline.expired


def test_a_machine_for_arm64_runs_on_a_node_for_it(
    cluster: Cluster, backend: KubevirtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.virt, "node_architecture", "arm64")
    with powered_on(backend, **ARM64) as machine:
        read_until(machine.stream, b"line 1\r\n")


def test_what_is_refused_when_a_machine_for_arm64_is_started_is_told_at_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    # The VirtualMachine with it is accepted.
    path = tmp_path / "patch.yaml"
    devices = {"watchdog": {"name": "w", "i6300esb": {"action": "reset"}}}
    template = {"spec": {"domain": {"devices": devices}}}
    path.write_text(json.dumps({"kind": "VirtualMachine", "spec": {"template": template}}))
    deadline = Deadline(120)
    with (
        open_kubevirt(ClusterConfig(cluster_patch=path)) as backend,
        pytest.raises(ClusterError, match="Arm64 not support Watchdog device"),
        powered_on(backend, deadline=deadline, **ARM64),
    ):
        pass
    assert not deadline.expired


def test_a_cluster_error_is_shown_without_the_frames_that_it_came_through(
    cluster: Cluster, quick_kernel: Path, tmp_path: Path
) -> None:
    cluster.virt.refusal = 'pods "{pod}" is forbidden: violates PodSecurity "restricted:latest"'
    (tmp_path / "test_it.py").write_text(
        "def test_it(machine):\n    pass\n\n"
        "def test_that(kboot_session, boot_server):\n"
        "    from kboot.backend import MachineSpec\n    from kboot.deadline import Deadline\n"
        "    spec = MachineSpec(name='m', boot_file='http://none')\n"
        "    with kboot_session.backend.power_on(spec, Deadline(9)):\n        pass\n"
    )
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"),
        *(f"--kernel={quick_kernel}", "--kboot-backend=kubevirt"),
    ]
    try:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        cluster.virt.refusal = ""
    assert " 2 errors in " in done.stdout, done.stdout
    assert done.stdout.count("runtimeDefaultProfile: true") >= 2
    # The test's own line, where it has one.
    assert ">       with kboot_session.backend.power_on(spec, Deadline(9)):" in done.stdout
    for theirs in ("contextlib.py", "functools.py", "kboot/kubevirt/", "urllib3"):
        assert theirs not in done.stdout


def test_a_guests_ssh_port_is_reached_through_the_cluster(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine, socket.create_server(("127.0.0.1", 0)) as server:
        assert isinstance(machine, SshVirtualMachine)
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


def test_an_account_with_the_printed_role_can_do_it_all(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.api.rights.rules = [
        rule for rule in RULES if "networking.k8s.io" not in rule["apiGroups"]
    ]
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel")
    with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(20)) as server:
        server.remove(server.put(artifact))
        with powered_on(backend) as machine:
            assert isinstance(machine, ClusterVirtualMachine)
            read_until(machine.stream, b"line 1\r\n")
            cluster.drop_consoles()
            read_until(machine.stream, b"line 100\r\n")
            machine.reset()
            machine.pause()
            machine.unpause()
            machine.set_link(up=False)
            machine.restart(force=True)
            machine.stop()
            machine.start()
            with socket.create_connection(machine.ssh_address(), timeout=5):
                machine.evidence(tmp_path)
        server.catch_up(Deadline(5))
        assert main(["runs", "--backend", "kubevirt"]) == 0
        assert main(["gc", "--backend", "kubevirt"]) == 0
    assert main(["doctor", "--backend", "kubevirt"]) == 0, capsys.readouterr().out
