"""Files on their way to a boot server on a cluster: whole and as they were, or not there at all."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kboot.backend import BootServer, Progress
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kernel import Kernel
from kboot.kubevirt import open_kubevirt
from kboot.machine.publishing import upload
from kboot.machine.settings import MachineSettings
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.talking import talking

#: Pushes a small file, and a large one until half of it is sent; then it is to be killed.
KILLED = """
import pathlib, sys, time
from kboot.deadline import Deadline
from kboot.config import ClusterConfig
from kboot.kubevirt import open_kubevirt
def stand_still(progress):
    if progress.step == "send" and progress.done > progress.size // 2:
        print("half", flush=True)
        time.sleep(600)
with open_kubevirt(ClusterConfig(cluster_claim="kept")) as backend:
    with backend.serve(Deadline(20)) as server:
        server.put(pathlib.Path(sys.argv[1]))
        server.put(pathlib.Path(sys.argv[2]), stand_still)
"""

#: Pushes a file, and says by how many KiB its memory has grown.
MEASURED = """
import pathlib, resource, sys
from kboot.deadline import Deadline
from kboot.config import ClusterConfig
from kboot.kubevirt import open_kubevirt
def most_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(20)) as server:
    server.put(pathlib.Path(sys.argv[1]))
    before = most_kib()
    server.put(pathlib.Path(sys.argv[2]))
    print(most_kib() - before)
"""


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def stored(cluster: Cluster) -> list[str]:
    """The names of the artifacts on the one boot server there is."""
    (pod,) = cluster.kubelet.running.values()
    return [path.name for path in pod.directory.glob("srv/files/artifacts/*")]


def on_claim(cluster: Cluster, claim: str) -> list[str]:
    """The names of the artifacts on a claim."""
    return [path.name for path in (cluster.directory / f"claim-{claim}").glob("files/artifacts/*")]


def sent(cluster: Cluster) -> list[str]:
    """The names of the artifacts that were sent, as often as they were."""
    puts = [call for call in cluster.calls("/artifacts/") if call.startswith("PUT")]
    return [call.rpartition("/")[2] for call in puts]


def test_progress_is_told_of_reading_and_of_sending(server: BootServer, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"x" * 3_000_000)
    told: list[Progress] = []
    server.put(artifact, told.append)
    for step in ("read", "send"):
        done = [progress.done for progress in told if progress.step == step]
        assert done == sorted(done)
        assert len(done) > 3
        assert done[-1] == 3_000_000
    assert {(progress.file, progress.size) for progress in told} == {(artifact, 3_000_000)}


def test_a_file_that_is_written_to_meanwhile_is_not_published(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"

    def append(progress: Progress) -> None:
        if progress.step == "send":
            with artifact.open("ab") as file:
                file.write(b"more")

    def rewrite(progress: Progress) -> None:
        if progress.step == "send" and progress.done == progress.size:
            artifact.write_bytes(b"y" * progress.size)

    def truncate(progress: Progress) -> None:
        if progress.step == "send":
            artifact.write_bytes(b"")

    for change in (append, rewrite, truncate):
        artifact.write_bytes(b"x" * 1_000_000)
        with pytest.raises(ConfigError, match="was changed while it was pushed"):
            server.put(artifact, change)
        assert stored(cluster) == []


def test_a_file_that_was_damaged_on_the_way_is_not_left_there(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"kernel" * 1000)
    cluster.order("PUT .*/artifacts/", damage=True)
    with pytest.raises(ClusterError, match="artifact was damaged on its way to the boot server"):
        server.put(artifact)
    assert stored(cluster) == []
    # Reading it back is tried again when the connection is lost.
    cluster.order("GET .*/artifacts/.+")
    cluster.order("GET .*/artifacts/.+", status=503)
    url = server.put(artifact)
    assert stored(cluster) == [url.rpartition("/")[2]]


def test_what_the_listener_raises_ends_a_push(
    cluster: Cluster, server: BootServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_bytes(b"x" * 1_000_000)

    def hang_up(progress: Progress) -> None:
        if progress.step == "send":
            raise BrokenPipeError("who asked for it has left")

    # Not for a lost connection to the cluster, which would be made again.
    with pytest.raises(BrokenPipeError, match="who asked for it has left"):
        server.put(artifact, hang_up)
    assert len(sent(cluster)) <= 1
    assert stored(cluster) == []


@pytest.fixture
def load(tmp_path: Path) -> tuple[Kernel, MachineSettings]:
    """A kernel and two images of the same size, none of which would boot."""
    files = [tmp_path / name for name in ("kernel", "initrd", "module")]
    for file in files:
        file.write_bytes(file.name.encode() * 1000)
    kernel = Kernel(
        image=files[0],
        release="6",
        version="6",
        architecture="x86_64",
        source=files[0],
        sha256="",
    )
    return kernel, MachineSettings(initrds=(files[1], files[2], files[1]))


def test_what_a_machine_loads_is_sent_at_once(
    cluster: Cluster, server: BootServer, load: tuple[Kernel, MachineSettings]
) -> None:
    # None of them goes on before all are under way.
    cluster.order("PUT .*/artifacts/", count=3, together=3)
    loaded = upload(server, *load)
    assert len(sent(cluster)) == 3
    assert loaded.initrd_urls[0] == loaded.initrd_urls[2] != loaded.initrd_urls[1]
    names = {url.rpartition("/")[2] for url in (loaded.kernel_url, *loaded.initrd_urls)}
    assert set(stored(cluster)) == names


def test_when_one_file_cannot_be_sent_the_others_are_given_up(
    cluster: Cluster, server: BootServer, load: tuple[Kernel, MachineSettings]
) -> None:
    cluster.order("GET .*/artifacts/$", delay_s=0.3)

    def end(progress: Progress) -> None:
        if progress.file.name == "kernel":
            raise ConfigError("not this one")

    with pytest.raises(ConfigError, match="not this one"):
        upload(server, *load, end)
    time.sleep(0.6)
    assert stored(cluster) == []


def test_after_a_killed_push_only_what_is_missing_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel" * 100_000)
    initrd.write_bytes(b"initrd" * 1_000_000)
    command = [sys.executable, "-c", KILLED, str(kernel), str(initrd)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as push:
        assert push.stdout
        assert push.stdout.readline() == "half\n"
        push.kill()
    (whole,) = stored(cluster)
    cluster.delete(
        "configmaps",
        cluster.objects("configmaps")[0]["metadata"]["labels"]["app.kubernetes.io/instance"],
    )
    cluster.call(cluster.api.calls.clear)
    with (
        open_kubevirt(ClusterConfig(cluster_claim="kept")) as backend,
        backend.serve(Deadline(20)) as server,
    ):
        assert stored(cluster) == [whole]
        assert server.put(kernel).endswith(whole)
        missing = server.put(initrd).rpartition("/")[2]
        assert sent(cluster) == [missing]
        assert sorted(stored(cluster)) == sorted([whole, missing])
    cluster.delete("persistentvolumeclaims", "kept")


def test_a_large_file_takes_no_more_memory_than_a_small_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 1_000_000)
    with large.open("wb") as file:
        file.truncate(200_000_000)
    command = [sys.executable, "-c", MEASURED, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 8 * 1024


@contextlib.contextmanager
def run_on(claim: str) -> Iterator[BootServer]:
    """The boot server of a run of its own, whose files are on a claim that others use as well."""
    with (
        open_kubevirt(ClusterConfig(cluster_claim=claim)) as backend,
        backend.serve(Deadline(20)) as server,
    ):
        yield server


def test_what_another_run_boots_from_stays_on_a_shared_claim(
    cluster: Cluster, tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"kernel" * 1000)
    with run_on("shared") as first:
        with run_on("shared") as second:
            urls = [server.put(kernel) for server in (first, second)]
            assert first.remove(urls[0]) == 0
            assert len(on_claim(cluster, "shared")) == 1
            # Of two who remove it, the last one does.
            assert second.remove(urls[1]) == 6000
            assert on_claim(cluster, "shared") == []
            second.put(kernel)
        # A run that has ended uses nothing any more.
        assert first.remove(first.put(kernel)) == 6000
    assert on_claim(cluster, "shared") == []
    cluster.delete("persistentvolumeclaims", "shared")


def test_a_file_that_is_just_being_removed_is_sent_again(cluster: Cluster, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"kernel" * 1000)
    with run_on("contended") as first, run_on("contended") as second:
        url = first.put(kernel)
        cluster.order("DELETE .*artifacts/", delay_s=2)
        with ThreadPoolExecutor() as pool:
            removed = pool.submit(first.remove, url)
            for _ in Deadline(10).poll(0.02):
                if cluster.calls("HEAD "):
                    break
            second.put(kernel)
            assert removed.result() == 6000
        assert len(on_claim(cluster, "contended")) == 1
    cluster.delete("persistentvolumeclaims", "contended")
