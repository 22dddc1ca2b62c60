"""Claims behind disks: cloned by the storage, imported by CDI, kept by persistent machines."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kboot.backend import VirtualMachine
from kboot.cli import main
from kboot.config import ClusterConfig, read_disks
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import KubevirtBackend, claims, kept_disks, manifests, open_persistent
from kboot.machine_spec import MachineSpec
from tests.kubevirt import schema
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.powered import powered_on
from tests.kubevirt.recordings import needs_recordings
from tests.kubevirt.talking import talking

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


@pytest.fixture
def storage(cluster: Cluster, tmp_path: Path) -> Iterator[Any]:
    """The test cluster's storage, with a claim ``golden``."""
    storage = cluster.virt.storage
    storage.cdi = False
    (tmp_path / "golden.raw").write_bytes(b"golden\n".ljust(4 * MIB, b"\0"))
    claim: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "golden", "namespace": "team"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "fast",
            "resources": {"requests": {"storage": "4Mi"}},
        },
    }
    cluster.call(lambda: cluster.store.create("persistentvolumeclaims", claim))
    storage.claims["golden"] = tmp_path / "golden.raw"
    yield storage
    for claim in cluster.objects("persistentvolumeclaims"):
        cluster.delete("persistentvolumeclaims", claim["metadata"]["name"])
    storage.claims.clear()
    storage.cdi = False
    storage.clonable.clear()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server on this host with ``image.raw``."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "image.raw").write_bytes(b"from afar\n".ljust(MIB, b"\0"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def made(cluster: Cluster, plural: str) -> dict[str, dict[str, Any]]:
    """What kboot has made, by name; each is as the API server's schema has it."""
    return {
        str(each["metadata"]["name"]): each
        for each in cluster.objects(plural)
        if "app.kubernetes.io/name" in dict(each["metadata"].get("labels", {}))
    }


def volume_of(cluster: Cluster) -> dict[str, Any]:
    (vm,) = cluster.objects("virtualmachines")
    (volume,) = vm["spec"]["template"]["spec"]["volumes"]
    return dict(volume)


def begins_with(cluster: Cluster, name: str) -> bytes:
    with cluster.virt.storage.claims[name].open("rb") as file:
        return file.read(10)


def test_the_storage_clones_a_claim_once_for_all_machines_of_a_run(
    cluster: Cluster, storage: Any, backend: KubevirtBackend
) -> None:
    with powered_on(backend, disks=read_disks(("d=clone:golden",))):
        ((name, claim),) = made(cluster, "persistentvolumeclaims").items()
        assert claim["spec"] == {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "fast",
            "resources": {"requests": {"storage": "4Mi"}},
            "dataSource": {"kind": "PersistentVolumeClaim", "name": "golden"},
        }
        # Nothing is written to the clone: each power-on begins with what was cloned.
        assert volume_of(cluster) == {
            "name": "disk-d",
            "ephemeral": {"persistentVolumeClaim": {"claimName": name}},
        }
        assert begins_with(cluster, name) == b"golden\n\0\0\0"
    with powered_on(backend, "other", disks=read_disks(("e=clone:golden",))):
        assert list(made(cluster, "persistentvolumeclaims")) == [name]
    assert claim["metadata"]["ownerReferences"][0]["kind"] == "ConfigMap"


def test_the_claims_of_a_run_go_with_it(cluster: Cluster, storage: Any) -> None:
    from kboot.kubevirt import open_kubevirt

    with (
        open_kubevirt(ClusterConfig()) as backend,
        powered_on(backend, disks=read_disks(("clone:golden",))),
    ):
        assert len(made(cluster, "persistentvolumeclaims")) == 1
    assert made(cluster, "persistentvolumeclaims") == {}


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("clone:none", r"there is no volume claim none to clone in namespace team; make one"),
        (
            "clone:images/golden",
            r"the cluster has no CDI, which imports and clones disks: give a claim of this "
            r"namespace, clone:NAME",
        ),
        ("source:debian", r"the cluster has no CDI.*: give a container image \(container:IMAGE\)"),
        ("https://example.org/x.img,size=2G", r"the cluster has no CDI"),
        ("container:registry/x,keep,size=2G", r"the cluster has no CDI"),
    ],
)
def test_without_cdi_one_line_says_what_to_give_instead(
    cluster: Cluster, storage: Any, backend: KubevirtBackend, declared: str, words: str
) -> None:
    with (
        pytest.raises(ConfigError, match=words) as caught,
        powered_on(backend, disks=read_disks((declared,))),
    ):
        pytest.fail("it runs")
    assert "\n" not in str(caught.value)
    assert cluster.objects("virtualmachines") == []


def test_an_image_is_imported_by_cdi_and_its_progress_is_told(
    cluster: Cluster,
    storage: Any,
    backend: KubevirtBackend,
    web: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage.cdi, storage.step_s = True, 0.15
    monkeypatch.setattr(claims, "_POLL_S", 0.03)
    monkeypatch.setattr(claims, "_TELL_S", 0.0)
    with powered_on(backend, disks=read_disks((f"i={web}/image.raw,size=2M",))):
        ((name, volume),) = made(cluster, "datavolumes").items()
        assert volume["spec"] == {
            "source": {"http": {"url": f"{web}/image.raw"}},
            "storage": {"resources": {"requests": {"storage": "2Mi"}}},
        }
        assert begins_with(cluster, name) == b"from afar\n"
        assert storage.claims[name].stat().st_size == 2 * MIB
    told = [text for text in caplog.messages if text.startswith("disk i (http")]
    assert any(text.endswith("import in progress, 50 %") for text in told), told
    storage.step_s = 0.02


def test_an_import_that_fails_is_told_at_once_with_the_importers_words(
    cluster: Cluster, storage: Any, backend: KubevirtBackend, web: str
) -> None:
    storage.cdi = True
    deadline = Deadline(60)
    with (
        pytest.raises(
            ClusterError,
            match=r"disk i \(http.*none.raw,size=2M\): .*status code 200, got 404.*correct the URL",
        ),
        powered_on(backend, deadline=deadline, disks=read_disks((f"i={web}/none.raw,size=2M",))),
    ):
        pytest.fail("it runs")
    assert not deadline.expired
    # The next attempt begins anew.
    assert made(cluster, "datavolumes") == {}


def test_a_claim_of_another_namespace_is_cloned_with_the_right_to(
    cluster: Cluster, storage: Any, backend: KubevirtBackend, tmp_path: Path
) -> None:
    storage.cdi = True
    (tmp_path / "afar.raw").write_bytes(b"elsewhere\n".ljust(MIB, b"\0"))
    storage.foreign["images", "base"] = tmp_path / "afar.raw"
    with (
        pytest.raises(
            ConfigError,
            match=r"disk d: tester may not clone from namespace images; .*datavolumes/source "
            r"\(cdi.kubevirt.io\) there: kubectl create rolebinding -n images",
        ),
        powered_on(backend, disks=read_disks(("d=clone:images/base",))),
    ):
        pytest.fail("it runs")
    storage.clonable.add("images")
    with powered_on(backend, disks=read_disks(("d=clone:images/base",))):
        ((name, volume),) = made(cluster, "datavolumes").items()
        assert volume["spec"]["source"] == {"pvc": {"namespace": "images", "name": "base"}}
        assert begins_with(cluster, name) == b"elsewhere\n"


def test_a_disk_begins_with_an_entry_of_the_catalogue(
    cluster: Cluster, storage: Any, backend: KubevirtBackend, tmp_path: Path
) -> None:
    storage.cdi = True
    (tmp_path / "debian.raw").write_bytes(b"catalogue\n".ljust(MIB, b"\0"))
    storage.sources["os", "debian13"] = tmp_path / "debian.raw"
    with powered_on(backend, disks=read_disks(("d=source:os/debian13",))):
        ((name, volume),) = made(cluster, "datavolumes").items()
        assert volume["spec"] == {
            "sourceRef": {"kind": "DataSource", "namespace": "os", "name": "debian13"},
            "storage": {},
        }
        assert begins_with(cluster, name) == b"catalogue\n"


@contextlib.contextmanager
def machine(name: str, *declared: str) -> Iterator[VirtualMachine]:
    """A persistent machine, which ``down`` has removed at the end."""
    settings = ClusterConfig(cluster_owner="me")
    spec = MachineSpec(name=name, boot_file="http://none/boot.ipxe", disks=read_disks(declared))
    with (
        open_persistent(settings, name) as backend,
        backend.power_on(spec, Deadline(20)) as vm,
    ):
        yield vm


def run(*words: str) -> int:
    return main(["disks", *words, "--backend", "kubevirt", "--cluster-owner", "me"])


def test_a_kept_disk_survives_its_machine_and_is_listed_cloned_and_removed(
    cluster: Cluster,
    storage: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with machine("m1", "data=clone:golden,keep"):
        ((name, claim),) = made(cluster, "persistentvolumeclaims").items()
        assert "ownerReferences" not in claim["metadata"]
        assert volume_of(cluster)["persistentVolumeClaim"] == {"claimName": name}
        # What a guest would write.
        storage.claims[name].write_bytes(b"written\n".ljust(4 * MIB, b"\0"))
        assert run("list", "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["disk"], found["above"]) == ("m1/data", "clone:golden")
        assert (found["bytes"], found["in_use"]) == (4 * MIB, True)
        assert run("rm", "m1/data") == 2
        assert "cannot be removed while m1 is on: kboot down m1" in capsys.readouterr().err
    with machine("m1", "data=clone:golden,keep"):
        assert list(made(cluster, "persistentvolumeclaims")) == [name]
        assert begins_with(cluster, name) == b"written\n\0\0"
    cluster.wait(_pods_gone(cluster))
    monkeypatch.setattr(kept_disks, "_BIND_AT_ONCE_S", 0.1)
    assert run("clone", "m1/data", "written") == 0
    # What its machine writes from now on is not in the clone, which is there already.
    assert begins_with(cluster, "written") == b"written\n\0\0"
    assert cluster.objects("pods") == []
    assert "use it: --disk clone:written" in capsys.readouterr().out
    assert run("clone", "m1/data", "written") == 2
    assert "there is a volume claim written already" in capsys.readouterr().err
    with machine("m2", "data=clone:written"):
        (other,) = made(cluster, "persistentvolumeclaims").keys() - {name, "written"}
        assert begins_with(cluster, other) == b"written\n\0\0"
    assert run("rm", "m1/data", "written") == 0
    assert made(cluster, "persistentvolumeclaims") == {}
    assert run("list") == 0
    assert "no disks" in capsys.readouterr().out
    assert run("rm", "m1/data") == 2
    assert "no disk m1/data is kept in namespace team" in capsys.readouterr().err


async def _pods_gone(cluster: Cluster) -> None:
    import asyncio

    while any(cluster.store.find("pods")):
        await asyncio.sleep(0.02)


def test_a_kept_disk_is_refused_above_another_source(cluster: Cluster, storage: Any) -> None:
    with machine("m1", "data=blank,size=8M,keep"):
        ((name, claim),) = made(cluster, "persistentvolumeclaims").items()
        assert claim["spec"]["resources"]["requests"] == {"storage": "8Mi"}
        assert storage.claims[name].stat().st_size == 8 * MIB
    with (
        pytest.raises(
            ConfigError,
            match=r"disk data was kept above another source \(blank,size=8M\); .*"
            r"kboot disks rm m1/data",
        ),
        machine("m1", "data=clone:golden,keep"),
    ):
        pytest.fail("it runs")


def test_no_password_of_a_url_is_written_on_a_claim() -> None:
    (disk,) = read_disks(("https://me:secret@example.org/x.img,size=2G",))
    assert claims.origin(disk) == "https://example.org/x.img,size=2048M"


def test_two_owners_have_disks_of_their_own() -> None:
    names = {
        claims.kept_name(*each)
        for each in (("a", "m", "d"), ("b", "m", "d"), ("a-m", "d", "d"), ("a", "m-d", "d"))
    }
    assert len(names) >= 3
    assert all(len(name) <= 63 for name in names)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("4Mi", 4 << 20), ("1.5Gi", 3 << 29), ("2G", 2 * 10**9), ("512", 512), ("?", 0)],
)
def test_quantities_are_read(quantity: str, expected: int) -> None:
    assert kept_disks.size_bytes(quantity) == expected


@needs_recordings
def test_the_schema_of_data_volumes_finds_a_field_in_the_wrong_place() -> None:
    volume = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "x"},
        "spec": {"source": {"http": {"address": "x"}}, "storage": {}},
    }
    assert any("unknown field address" in fault for fault in schema.faults(volume))


@pytest.mark.parametrize("mode", ["Filesystem", "Block"])
def test_the_pod_that_has_a_claim_bound_keeps_to_restricted_pod_security(mode: str) -> None:
    claim: dict[str, Any] = {
        "metadata": {"name": "gold", "namespace": "team", "uid": "u"},
        "spec": {"volumeMode": mode},
    }
    pod = manifests.first_pod(claim, ClusterConfig())
    assert schema.faults(pod) == []
    (container,) = pod["spec"]["containers"]
    assert ("volumeDevices" in container) == (mode == "Block")
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
