"""The boot server on a cluster: filled, cut short, guarded, killed, and read from."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.backend import BootServer
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import KubevirtBackend, join_kubevirt, open_kubevirt
from kboot.kubevirt.manifests import token_of
from tests.kubevirt.cluster import TOKEN, Cluster, running_cluster
from tests.kubevirt.cluster.pods import MISSING_IMAGE
from tests.kubevirt.powered import eventually
from tests.kubevirt.talking import talking


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def test_what_is_there_is_not_sent_again(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"kernel" * 100_000)
    two.write_bytes(one.read_bytes())
    url = server.put(one)
    assert server.put(two) == url
    assert len([call for call in cluster.calls("artifacts/") if call.startswith("PUT")]) == 1


@pytest.mark.parametrize("first", ["put", "write", "has"])
def test_a_service_that_has_no_endpoint_yet_is_asked_again(
    cluster: Cluster, backend: KubevirtBackend, tmp_path: Path, first: str
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(bytes(range(256)) * 40_000)
    cluster.kubelet.endpoint_lag_s = 1.0
    try:
        with backend.serve(Deadline(20)) as server:
            if first == "put":
                server.put(artifact)
            elif first == "write":
                server.write("m/boot.ipxe", "#!ipxe")
            else:
                assert server.remove(server.url("artifacts/" + "0" * 64)) == 0
            asked = cluster.calls("/proxy/")
            assert asked.count(asked[0]) > 1
            server.put(artifact)
    finally:
        cluster.kubelet.endpoint_lag_s = 0.1


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


def test_a_server_is_joined_by_another_process_and_stays_when_that_ends(
    cluster: Cluster, backend: KubevirtBackend, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel")
    for _ in range(2):
        with (
            join_kubevirt(ClusterConfig(), backend.run.identifier) as joined,
            joined.join_server(Deadline(20)) as same,
        ):
            assert same.put(artifact) == server.put(artifact)
            assert same.write("m/boot.ipxe", "#!ipxe") == server.url("scripts/m/boot.ipxe")
    server.check()
    assert len([call for call in cluster.calls("artifacts/") if call.startswith("PUT")]) == 1
    with (
        pytest.raises(ClusterError, match="kboot-rnone"),
        join_kubevirt(ClusterConfig(), "rnone"),
    ):
        pass


def test_what_was_removed_is_gone_and_is_sent_again(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel")
    url = server.put(artifact)
    assert (server.remove(url), server.remove(url)) == (6, 0)
    assert server.put(artifact) == url
    assert len([call for call in cluster.calls("artifacts/") if call.startswith("PUT")]) == 2


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
    assert session.post(url, data="x", timeout=5).status_code == 404
    # A script that says who asks does so by POST.
    server.write("good", "#!ipxe\n")
    assert session.post(url.replace("evil", "good"), data="x", timeout=5).text == "#!ipxe\n"
    server.check()


def test_the_token_is_told_to_nobody(
    cluster: Cluster,
    backend: KubevirtBackend,
    server: BootServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upload_token = token_of(cluster.objects("secrets")[0])
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel")
    cluster.order("PUT .*/artifacts/", status=503)
    cluster.order("PUT .*/scripts/", status=400)
    with caplog.at_level(logging.DEBUG):
        server.put(artifact)
        with pytest.raises(ClusterError) as error:
            server.write("m/boot.ipxe", "#!ipxe")
        with pytest.raises(ConfigError, match="cannot read"):
            server.put(tmp_path / "none")
    server.evidence(tmp_path)
    texts = [caplog.text, str(error.value), repr(server), repr(backend.run)]
    texts += [path.read_text() for path in tmp_path.glob("nginx.*")]
    assert len(texts) == 6
    assert "PUT" in caplog.text
    for text in texts:
        assert upload_token not in text
        assert TOKEN not in text


def test_a_tree_is_published_and_follows_what_changes(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    menu, image = tmp_path / "menu.ipxe", tmp_path / "an image"
    menu.write_text("#!ipxe\n")
    image.write_bytes(b"data")
    names = {"menu.ipxe": menu, "deep/er/an image": image}
    assert server.publish_tree("m", names) == ["deep/er/an image", "menu.ipxe"]
    (pod,) = cluster.kubelet.running.values()
    (place,) = (pod.directory / "srv/files/scripts").glob("*/m")
    assert (place / "deep/er/an image").read_bytes() == b"data"
    sent = len(cluster.calls("PUT"))
    assert server.publish_tree("m", names) == []
    assert len(cluster.calls("PUT")) == sent
    menu.write_text("#!ipxe\nshell\n")
    assert server.publish_tree("m", {"menu.ipxe": menu}) == ["deep/er/an image", "menu.ipxe"]
    assert [path.name for path in place.iterdir() if path.is_file()] == ["menu.ipxe"]
    assert (place / "menu.ipxe").read_text() == "#!ipxe\nshell\n"
    assert not (place / "deep/er/an image").exists()


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


def ask_many_times(port: int, path: str, count: int) -> None:
    """Send requests for `path` in one go; nginx takes a thousand by one connection."""
    for begin in range(0, count, 1000):
        numbers = range(begin, min(begin + 1000, count))
        asked = "".join(
            f"GET {path}?n={number} HTTP/1.1\r\nHost: here\r\n\r\n" for number in numbers
        )
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(asked.encode())
            answers = b""
            while answers.count(b"200 OK") < len(numbers):
                answers += connection.recv(1 << 20)


def test_a_request_is_never_read_twice_however_many_there_were(
    cluster: Cluster, server: BootServer
) -> None:
    (pod,) = cluster.kubelet.running.values()
    path, position, seen = "/" + server.url("beacon/old").split("/", 3)[3], 0, 0
    ask_many_times(pod.ports[8080], path, 10_500)
    for _ in Deadline(30).poll(0.05):
        new, position = server.fetches_since(position)
        seen += len(new)
        if seen >= 10_500:
            break
    assert seen == 10_500
    for number in range(2):
        cluster.wait(cluster.api.hang_up())
        ask_many_times(pod.ports[8080], path.replace("old", f"new{number}"), 1)
        for _ in Deadline(10).poll(0.05):
            new, _ = server.fetches_since(position)
            if new:
                break
        server.catch_up(Deadline(5))
        new, position = server.fetches_since(position)
        assert [fetch.path for fetch in new] == [f"beacon/new{number}"]


def test_what_the_server_says_beside_is_kept_once(
    cluster: Cluster, backend: KubevirtBackend, tmp_path: Path
) -> None:
    with backend.serve(Deadline(20)) as server:
        (pod,) = cluster.kubelet.running.values()
        with pod.log.open("a") as log:
            log.write("2026/01/01 00:00:00 [warn] 7#7: odd\n" * 2)
        for _ in range(3):
            cluster.wait(cluster.api.hang_up())
            server.catch_up(Deadline(5))
        server.evidence(tmp_path)
        assert (tmp_path / "nginx.log").read_text().count("[warn] 7#7: odd") == 2
    cluster.delete("pods", backend.run.name)


def test_a_log_that_stands_still_is_read_anew(cluster: Cluster, backend: KubevirtBackend) -> None:
    cluster.order("GET .*log.*follow", delay_s=600)
    with backend.serve(Deadline(20)) as server:
        url = server.write("m/boot.ipxe", "#!ipxe\n")
        (pod,) = cluster.kubelet.running.values()
        import requests

        session = requests.Session()
        session.trust_env = False
        path = url.partition(".svc.cluster.local")[2]
        base = f"http://127.0.0.1:{pod.ports[8080]}"
        assert session.get(f"{base}{path}", timeout=5).status_code == 200
        # nginx writes its line when the answer is gone.
        for _ in Deadline(5).poll(0.05):
            server.catch_up(Deadline(5))
            if server.fetches():
                break
        server.catch_up(Deadline(5))
        assert [fetch.path for fetch in server.fetches()] == ["scripts/m/boot.ipxe"]
    cluster.delete("pods", backend.run.name)


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
    deadline = Deadline(120)
    with (
        open_kubevirt(ClusterConfig(cluster_nginx_image=MISSING_IMAGE)) as backend,
        pytest.raises(ClusterError, match="image localhost/none:1 cannot be pulled"),
        backend.serve(deadline),
    ):
        pass
    assert not deadline.expired
    assert cluster.objects("pods") == []


def test_nothing_is_waited_for_when_the_server_is_gone(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel")
    cluster.delete("pods", cluster.objects("pods")[0]["metadata"]["name"])
    before = len(cluster.calls("/proxy/"))
    with pytest.raises(ClusterError, match=r"the boot server's pod .* is gone"):
        server.put(artifact)
    # Patience has it asked twice a second, for a minute.
    assert len(cluster.calls("/proxy/")) - before < 10
