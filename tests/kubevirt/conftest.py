"""Fixtures: a test cluster, and kboot's configuration pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.backend import BootServer
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.kubevirt import KubevirtBackend, open_kubevirt
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.cluster.rights import Rights


@pytest.fixture(scope="session")
def ipxe_disk() -> Path:
    """The image with a disk that boots iPXE; ``make ipxe-disk`` builds it."""
    path = Path(__file__).parents[2] / "build" / "ipxe" / "ipxe-disk.tar"
    if not path.is_file():
        pytest.fail(f"no disk at {path}: run make ipxe-disk")
    return path


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """A test cluster for a module's tests."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(
    shared_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """The module's test cluster, as the current context of this test's kubeconfig."""
    shared_cluster.renew_if_broken()
    path = shared_cluster.write_kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))
    # What is meant for the Internet is not meant for the cluster.
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
    shared_cluster.call(shared_cluster.api.calls.clear)
    shared_cluster.api.rights = Rights()
    yield shared_cluster
    shared_cluster.call(shared_cluster.api.faults.pending.clear)


@pytest.fixture
def backend(cluster: Cluster) -> Iterator[KubevirtBackend]:
    with open_kubevirt(ClusterConfig()) as backend:
        yield backend
    left = [*cluster.objects("virtualmachines"), *cluster.objects("configmaps")]
    if left:
        cluster.broken = "a test has left objects behind"
    assert left == []


@pytest.fixture
def server(backend: KubevirtBackend) -> Iterator[BootServer]:
    with backend.serve(Deadline(20)) as server:
        yield server
