"""An API server that is busy, broken, forgetful or strict: waited out, or told with the remedy."""

from __future__ import annotations

import base64
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.backend import BootServer
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import KubevirtBackend, open_kubevirt
from kboot.kubevirt.api import PODS, Watch, connect
from tests.kubevirt.cluster import TOKEN, Cluster, running_cluster
from tests.kubevirt.powered import powered_on, read_until
from tests.kubevirt.talking import talking


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def test_busy_and_broken_answers_are_waited_out(cluster: Cluster, tmp_path: Path) -> None:
    cluster.order("POST .*/configmaps", status=429, headers={"Retry-After": "1"})
    cluster.order("POST .*/configmaps", status=500)
    cluster.order("POST .*/configmaps", done=True)
    cluster.order("GET .*/pods", count=2)
    with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(20)) as server:
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


def test_a_watch_goes_on_from_a_bookmark_without_another_list(cluster: Cluster) -> None:
    client = connect()
    with Watch(client, PODS) as watch:
        eventually_called(cluster, "watch=true", times=1)
        cluster.call(lambda: cluster.store.bookmark("pods"))
        time.sleep(0.3)
        # All before is forgotten: who has not heard of the bookmark would be told 410 now.
        cluster.call(cluster.store.forget)
        eventually_called(cluster, "watch=true", times=2)
        bookmark = cluster.call(lambda: cluster.store.version)
        assert f"resourceVersion={bookmark}&" in cluster.calls("watch=true")[1]
        time.sleep(0.3)
        assert len(cluster.calls("/pods")) == 3
        watch.check()
    client.close()


def eventually_called(cluster: Cluster, pattern: str, *, times: int) -> None:
    for _ in Deadline(5).poll(0.02):
        if len(cluster.calls(pattern)) >= times:
            return
    pytest.fail(f"not called {times} times: {pattern}")


def test_a_token_that_was_renewed_in_the_file_is_taken(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    cluster.write_kubeconfig(path, token="stale")
    client = connect()
    with pytest.raises(ClusterError, match="does not know who we are"):
        client.find(PODS, Deadline(2))
    cluster.write_kubeconfig(path)
    assert client.find(PODS, Deadline(2))[0] == []
    client.close()


def test_in_a_pod_the_pods_own_account_is_used_and_its_token_renewed(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(TOKEN)
    (account / "namespace").write_text("team\n")
    (account / "ca.crt").write_bytes(base64.b64decode(cluster.authority))
    # The package has a function of the module's name.
    monkeypatch.setattr(importlib.import_module("kboot.kubevirt.api.connect"), "_ACCOUNT", account)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    client = connect()
    assert client.namespace == "team"
    assert client.find(PODS, Deadline(5))[0] == []
    try:
        cluster.api.token = "renewed"
        (account / "token").write_text("renewed")
        assert client.find(PODS, Deadline(5))[0] == []
    finally:
        cluster.api.token = TOKEN
        client.close()


def test_a_token_that_is_renewed_while_a_machine_runs_goes_unnoticed(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"

    def renew() -> None:
        cluster.api.token = "renewed"
        # All that was open is opened anew, and finds the old token refused.
        cluster.store.end_watches()
        for instance in cluster.virt.instances.values():
            instance.drop_session()

    try:
        with (
            open_kubevirt(ClusterConfig()) as backend,
            backend.serve(Deadline(20)) as server,
            powered_on(backend) as machine,
        ):
            read_until(machine.stream, b"line 5\r\n")
            cluster.write_kubeconfig(path, token="renewed")
            cluster.call(renew)
            read_until(machine.stream, b"line 200\r\n")
            server.write("m/boot.ipxe", "#!ipxe")
            before = cluster.instance().vmi["metadata"]["uid"]
            # It is seen by the watches, with the new token.
            machine.restart()
            assert cluster.instance().vmi["metadata"]["uid"] != before
            machine.check()
            server.check()
    finally:
        cluster.api.token = TOKEN


def test_an_account_without_rights_is_told_which_one_it_lacks(cluster: Cluster) -> None:
    cluster.call(lambda: cluster.api.rights.forbidden.add("list virtualmachineinstances"))
    words = r"tester may not list virtualmachineinstances \(kubevirt.io\) in namespace team"
    with pytest.raises(ClusterError, match=words), open_kubevirt(ClusterConfig()):
        pass
    assert cluster.objects("configmaps") == []


def test_the_network_policy_is_done_without_where_it_may_not_be(cluster: Cluster) -> None:
    cluster.call(lambda: cluster.api.rights.forbidden.add("create networkpolicies"))
    with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(20)) as server:
        server.check()
        assert cluster.objects("networkpolicies") == []


def test_a_namespace_that_is_not_there_is_named(cluster: Cluster) -> None:
    with (
        pytest.raises(ClusterError, match="the cluster has no namespace nowhere"),
        open_kubevirt(ClusterConfig(namespace="nowhere")),
    ):
        pass


def test_a_boot_takes_few_calls_however_long_it_takes(
    cluster: Cluster, backend: KubevirtBackend, server: BootServer, tmp_path: Path
) -> None:
    # The service may have no endpoint yet, and is asked again: that is another test's.
    server.write("m/first", "")
    cluster.call(cluster.api.calls.clear)
    for name in ("kernel", "initrd", "modules"):
        (tmp_path / name).write_text(name * 1000)
        server.put(tmp_path / name)
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
    # What is stored is listed again after a second: how often depends on this host.
    calls = [call for call in cluster.calls() if not call.endswith("/files/artifacts/")]
    assert len(calls) <= 14, "\n".join(calls)
    assert "kboot.dev/run" in (tmp_path / "vm.yaml").read_text()
    assert json.loads((tmp_path / "vmi.json").read_text())["status"]["phase"] == "Running"


def test_a_watch_that_fails_unexpectedly_is_told_by_the_next_call(cluster: Cluster) -> None:
    with Watch(connect(), PODS) as watch:
        nameless: dict[str, Any] = {"kind": "Pod", "metadata": {}}
        cluster.call(lambda: cluster.store.tell("pods", "MODIFIED", nameless))
        with pytest.raises(ClusterError, match=r"the watch of pods has failed: KeyError\('name'\)"):
            watch.wait_for(lambda: None, Deadline(10))
        with pytest.raises(ClusterError, match="the watch of pods has failed"):
            watch.check()
