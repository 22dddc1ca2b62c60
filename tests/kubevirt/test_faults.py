"""What goes wrong on a cluster, done on purpose: nothing is lost, and every end says its reason."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.backend import BootServer, Machine, MachineSpec, SshMachine, Stream
from kboot.deadline import Deadline
from kboot.errors import ClusterError, GuestError
from kboot.kube import PODS, Watch, connect, open_websocket
from kboot.kube.resources import VMI_ACTIONS
from kboot.kubevirt import ClusterSettings, KubevirtBackend, open_kubevirt
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.cluster.pods import MISSING_IMAGE
from tests.kubevirt.talking import TalkingGuest, talking


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


@pytest.fixture
def backend(cluster: Cluster) -> Iterator[KubevirtBackend]:
    with open_kubevirt(ClusterSettings()) as backend:
        yield backend
    assert cluster.objects("virtualmachines") == []
    assert cluster.objects("configmaps") == []


@pytest.fixture
def server(backend: KubevirtBackend) -> Iterator[BootServer]:
    with backend.serve(Deadline(20)) as server:
        yield server


def powered_on(
    backend: KubevirtBackend, name: str = "m", **changes: Any
) -> contextlib.AbstractContextManager[Machine]:
    spec = MachineSpec(name=name, boot_file="http://none/boot.ipxe", **changes)
    return backend.power_on(spec, Deadline(20))


def guest_of(cluster: Cluster) -> TalkingGuest:
    guest = cluster.instance().guest
    assert isinstance(guest, TalkingGuest)
    return guest


def read_until(stream: Stream, text: bytes, *, seconds: float = 10) -> bytes:
    heard, deadline = b"", Deadline(seconds)
    while text not in heard:
        data = stream.recv(65536)
        assert data, f"the stream ended after {heard[-200:]!r}"
        assert not deadline.expired, heard[-200:]
        heard += data
    return heard


def eventually(fault: type[Exception], words: str, check: Any, *, seconds: float = 5) -> None:
    """`check` raises such a fault, soon."""

    def check_for_a_while() -> None:
        for _ in Deadline(seconds).poll(0.05):
            check()

    with pytest.raises(fault, match=words):
        check_for_a_while()


# ------------------------------------------------------------------------------- the console


def test_no_byte_is_lost_over_a_hundred_disconnects(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        heard = read_until(machine.stream, b"line 20\r\n")
        for _ in range(100):
            cluster.drop_consoles()
            # Some more, so that it is dropped at all places of a line and of a frame.
            for _ in range(3):
                heard += machine.stream.recv(4096)
            time.sleep(0.08)
        last = int(re.findall(rb"line (\d+)\r\n", heard)[-1])
        heard += read_until(machine.stream, b"line %d\r\n" % (last + 5))
    numbers = [int(number) for number in re.findall(rb"line (\d+)\r\n", heard)]
    first = numbers[0]
    unknown = heard.count(b"is not known]")
    assert unknown == 0
    missing = set(range(first, numbers[-1])) - set(numbers)
    assert missing == set(), f"{len(missing)} lines are missing without a mark"
    assert heard.count(b"from guest-console-log]") == heard.count(b"[kboot: the console is back]")


def test_what_was_said_before_the_console_was_attached_is_filled_and_marked(
    backend: KubevirtBackend,
) -> None:
    with powered_on(backend) as machine:
        heard = read_until(machine.stream, b"line 30\r\n")
    numbers = [int(number) for number in re.findall(rb"line (\d+)\r\n", heard)]
    assert numbers == list(range(31))


def test_a_machine_that_is_started_paused_is_heard_from_its_first_byte(cluster: Cluster) -> None:
    with open_kubevirt(ClusterSettings(attach="paused")) as backend, powered_on(backend) as machine:
        # The firmware's boot menu is skipped: somebody has pressed a key.
        heard = read_until(machine.stream, b"line 3\r\n")
    assert heard.startswith(b"Press ESC for boot menu.\r\n")
    assert b"line 0\r\n" in heard
    assert b"[kboot:" not in heard


def test_a_fight_for_the_console_is_told_as_such(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    client = connect()
    stopped = threading.Event()

    def steal(name: str) -> None:
        path = VMI_ACTIONS.path("team", name, "console")
        while not stopped.is_set():
            open_websocket(client, path, Deadline(5)).close()

    with powered_on(backend) as machine:
        thief = threading.Thread(target=steal, args=[cluster.instance().vmi["metadata"]["name"]])
        thief.start()
        try:
            with pytest.raises(ConnectionError, match="another session takes the machine's"):
                read_until(machine.stream, b"never said", seconds=30)
        finally:
            stopped.set()
            thief.join()
    client.close()


def test_what_is_typed_while_the_console_is_lost_arrives_when_it_is_back(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 5\r\n")
        before = cluster.api.faults.hits
        cluster.order("GET .*/console", count=3, status=500)

        def type_while_it_is_lost() -> None:
            for _ in Deadline(5).poll(0.01):
                if cluster.api.faults.hits > before:
                    break
            machine.stream.sendall(b"hello\r")

        typist = threading.Thread(target=type_while_it_is_lost)
        typist.start()
        cluster.drop_consoles()
        read_until(machine.stream, b"echo hello\r\n")
        typist.join()


# -------------------------------------------------------------------------------- the machine


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


# ---------------------------------------------------------------------------- the boot server


def test_what_is_there_is_not_sent_again(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"kernel" * 100_000)
    two.write_bytes(one.read_bytes())
    url = server.put(one)
    assert server.put(two) == url
    assert len([call for call in cluster.calls("artifacts/") if call.startswith("PUT")]) == 1


def test_an_upload_that_is_cut_short_leaves_nothing_half_and_is_done_again(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(bytes(range(256)) * 40_000)
    cluster.order("PUT .*/artifacts/", cut_after=3_000_000)
    cluster.order("PUT .*/artifacts/", status=503, headers={"Retry-After": "1"})
    url = server.put(artifact)
    (pod,) = cluster.kubelet.running.values()
    stored = pod.directory / "srv" / "files" / "artifacts"
    assert [path.name for path in stored.iterdir()] == [url.rpartition("/")[2]]
    assert next(stored.iterdir()).read_bytes() == artifact.read_bytes()


def test_nobody_stores_anything_without_the_token(
    cluster: Cluster, backend: KubevirtBackend, server: BootServer
) -> None:
    (pod,) = cluster.kubelet.running.values()
    import requests

    session = requests.Session()
    session.trust_env = False
    upload = f"http://127.0.0.1:{pod.ports[8081]}/files/scripts/evil"
    assert session.put(upload, data="x", timeout=5).status_code == 403
    wrong = {"X-Kboot-Token": "wrong"}
    assert session.put(upload, data="x", headers=wrong, timeout=5).status_code == 403
    assert session.delete(upload, headers=wrong, timeout=5).status_code == 403
    # The machines' port takes nothing at all.
    url = f"http://127.0.0.1:{pod.ports[8080]}/{backend.run.identifier}/scripts/evil"
    assert session.put(url, data="x", timeout=5).status_code == 405
    server.check()


def test_requests_of_machines_are_read_from_the_pods_log(
    cluster: Cluster, server: BootServer
) -> None:
    url = server.write("m/boot.ipxe", "#!ipxe\n")
    assert url.endswith("/scripts/m/boot.ipxe")
    (pod,) = cluster.kubelet.running.values()
    import requests

    session = requests.Session()
    session.trust_env = False
    path = url.partition(".svc.cluster.local")[2]
    base = f"http://127.0.0.1:{pod.ports[8080]}"
    assert session.get(f"{base}{path}?m=m&b=1", timeout=5).status_code == 200
    # The log's stream breaks; what comes after is read as well, and nothing twice.
    cluster.order("GET .*log.*follow")
    assert session.get(f"{base}{path}?m=m&b=2", timeout=5).status_code == 200
    for _ in Deadline(5).poll(0.05):
        if len(server.fetches()) == 2:
            break
    assert [fetch.query for fetch in server.fetches()] == ["m=m&b=1", "m=m&b=2"]
    assert {fetch.path for fetch in server.fetches()} == {"scripts/m/boot.ipxe"}
    assert all(abs(fetch.time - time.time()) < 30 for fetch in server.fetches())


def test_a_boot_server_that_is_killed_is_named(cluster: Cluster, backend: KubevirtBackend) -> None:
    with backend.serve(Deadline(20)) as server:
        (pod,) = cluster.kubelet.running.values()
        pod.process.kill()
        eventually(ClusterError, r"the boot server is down: pod .* exited with 137", server.check)
    cluster.delete("pods", backend.run.name)


def test_a_boot_server_that_is_deleted_is_named(cluster: Cluster, server: BootServer) -> None:
    cluster.delete("pods", cluster.objects("pods")[0]["metadata"]["name"])
    eventually(ClusterError, "the boot server's pod .* is gone", server.check)


def test_an_image_that_cannot_be_pulled_is_told_at_once(cluster: Cluster) -> None:
    start = time.monotonic()
    with (
        open_kubevirt(ClusterSettings(nginx_image=MISSING_IMAGE)) as backend,
        pytest.raises(ClusterError, match="image localhost/none:1 cannot be pulled"),
        backend.serve(Deadline(20)),
    ):
        pass
    assert time.monotonic() - start < 2
    assert cluster.objects("pods") == []


# ---------------------------------------------------------------------------- the API server


def test_busy_and_broken_answers_are_waited_out(cluster: Cluster, tmp_path: Path) -> None:
    cluster.order("POST .*/configmaps", status=429, headers={"Retry-After": "1"})
    cluster.order("POST .*/configmaps", status=500)
    cluster.order("POST .*/configmaps", done=True)
    cluster.order("GET .*/pods", count=2)
    with open_kubevirt(ClusterSettings()) as backend, backend.serve(Deadline(20)) as server:
        server.check()
    assert cluster.call(lambda: cluster.api.faults.pending) == []


def test_a_watch_that_has_to_begin_anew_misses_nothing(cluster: Cluster) -> None:
    client = connect()
    with Watch(client, PODS) as watch:

        def create(name: str) -> None:
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": "team",
                    # Not one for the kubelet to run.
                    "labels": {"kubevirt.io": "test"},
                },
                "spec": {},
            }
            cluster.call(lambda: cluster.store.create("pods", pod))

        def forget() -> None:
            for pod in cluster.store.find("pods", "team"):
                cluster.store.delete("pods", pod)
            cluster.store.forget()

        create("one")
        assert watch.wait_for(lambda: watch.get("one"), Deadline(5))
        cluster.call(cluster.store.end_watches)
        create("two")
        assert watch.wait_for(lambda: watch.get("two"), Deadline(5))
        # The change is forgotten before it was seen: only a new list shows it.
        cluster.call(forget)
        create("three")
        assert watch.wait_for(lambda: watch.get("three"), Deadline(5))
        assert watch.get("one") is None
        cluster.call(forget)
        client.close()


def test_a_token_that_was_renewed_in_the_file_is_taken(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    cluster.write_kubeconfig(path, token="stale")
    client = connect()
    with pytest.raises(ClusterError, match="does not know who we are"):
        client.find(PODS, Deadline(2))
    cluster.write_kubeconfig(path)
    assert client.find(PODS, Deadline(2))[0] == []
    client.close()


def test_an_account_without_rights_is_told_which_one_it_lacks(cluster: Cluster) -> None:
    cluster.call(lambda: cluster.api.forbidden.add("list virtualmachineinstances"))
    words = r"tester may not list virtualmachineinstances \(kubevirt.io\) in namespace team"
    with pytest.raises(ClusterError, match=words), open_kubevirt(ClusterSettings()):
        pass
    assert cluster.objects("configmaps") == []


def test_the_network_policy_is_done_without_where_it_may_not_be(cluster: Cluster) -> None:
    cluster.call(lambda: cluster.api.forbidden.add("create networkpolicies"))
    with open_kubevirt(ClusterSettings()) as backend, backend.serve(Deadline(20)) as server:
        server.check()
        assert cluster.objects("networkpolicies") == []


def test_a_namespace_that_is_not_there_is_named(cluster: Cluster) -> None:
    with (
        pytest.raises(ClusterError, match="the cluster has no namespace nowhere"),
        open_kubevirt(ClusterSettings(namespace="nowhere")),
    ):
        pass


def test_a_boot_takes_few_calls_however_long_it_takes(
    cluster: Cluster, backend: KubevirtBackend, server: BootServer, tmp_path: Path
) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"k" * 1000)
    initrd.write_bytes(b"i" * 1000)
    cluster.call(cluster.api.calls.clear)
    server.put(kernel)
    server.put(initrd)
    server.write("m/boot.ipxe", "#!ipxe")
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 100\r\n")
        so_far = len(cluster.calls())
        for _ in Deadline(1.5).poll(0.05):
            machine.stream.recv(65536)
            machine.check()
            server.check()
            server.fetches()
        assert len(cluster.calls()) == so_far
        machine.evidence(tmp_path)
    assert len(cluster.calls()) <= 15, "\n".join(cluster.calls())
    assert "kboot.dev/run" in (tmp_path / "vm.yaml").read_text()
    assert json.loads((tmp_path / "vmi.json").read_text())["status"]["phase"] == "Running"
