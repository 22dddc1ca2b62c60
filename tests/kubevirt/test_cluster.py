"""The test cluster itself: it ends with its clients' connections in any state, and heals."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api import PODS, connect
from tests.kubevirt.cluster import TOKEN, Cluster, running_cluster
from tests.kubevirt.talking import talking


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def test_connections_that_were_closed_already_are_cut(cluster: Cluster) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", cluster.port), timeout=5) as plain,
        context.wrap_socket(plain, do_handshake_on_connect=True) as client,
    ):
        path = "/api/v1/namespaces/team/pods?watch=true"
        request = f"GET {path} HTTP/1.1\r\nHost: any\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        client.sendall(request.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")

        def close_twice() -> None:
            for transport in cluster.api.connections.transports():
                transport.close()
                transport.close()

        cluster.call(close_twice)
        cluster.wait(cluster.api.hang_up())
        # Beneath TLS, which this side does not end in an orderly way: an end, not a wait.
        while plain.fileno() >= 0 and client.recv(1000):
            pass


@pytest.mark.parametrize("how", ["dead", "failing", "littered"])
def test_a_cluster_that_a_test_has_broken_is_replaced(cluster: Cluster, how: str) -> None:
    client = connect()
    if how == "dead":
        cluster.stop()
    elif how == "failing":
        cluster.call(lambda: cluster.store.objects.update({("pods", "team", "damaged"): {}}))
        with pytest.raises(ClusterError, match="500"):
            client.find(PODS, Deadline(1))
    else:
        cluster.broken = "a test has left objects behind"
    client.close()
    before = cluster.virt
    cluster.renew_if_broken()
    assert cluster.virt is not before
    assert cluster.objects("virtualmachines") == []


def test_a_sound_cluster_stays(cluster: Cluster) -> None:
    before = cluster.virt
    cluster.renew_if_broken()
    assert cluster.virt is before
