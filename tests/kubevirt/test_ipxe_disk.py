"""A user's iPXE for UEFI machines on a cluster: as an image in a registry, or on a claim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.kubevirt import (
    KubevirtBackend,
    open_kubevirt,
    open_persistent,
    take_over_persistent,
)
from kboot.kubevirt.ipxe_disk import IpxeDisk
from kboot.kubevirt.registry import ContainerImage, Repository, credentials, push
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.cluster.guests import Guest
from tests.kubevirt.image_registry import (
    PASSWORD,
    USER,
    certified,
    htpasswd,
    logged_in,
    requests_in,
    running_registry,
    token_service,
)
from tests.kubevirt.powered import powered_on
from tests.kubevirt.talking import talking

IMAGE = ContainerImage(config=b"{}", layers=(b"\0" * 1024,))


class Hardware:
    """What the cluster would run as QEMU machines: they only talk."""

    def __init__(self) -> None:
        self.disks: list[bytes] = []

    def __call__(self, spec: MachineSpec, directory: Path, paused: bool) -> Guest:
        words = " ".join(spec.extra_arguments)
        path = Path(words.partition("file=")[2].partition(" ")[0])
        # Of an image, the disk is what lies below the layer for writes.
        below = path.with_suffix(".raw")
        self.disks.append((below if below.is_file() else path).read_bytes())
        return talking(spec, directory, paused)


@pytest.fixture(scope="module")
def hardware() -> Hardware:
    return Hardware()


@pytest.fixture(scope="module")
def shared_cluster(hardware: Hardware) -> Iterator[Cluster]:
    with running_cluster(hardware) as cluster:
        yield cluster


@pytest.fixture
def ipxe(ipxe_disk: Path) -> Path:
    return ipxe_disk.parent / "ipxe.efi"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of the test's, where nobody is logged in anywhere."""
    for variable in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def uefi(ipxe: Path, **changes: Any) -> MachineSpec:
    return MachineSpec(firmware="uefi", ipxe=ipxe, **changes)


def volumes(cluster: Cluster) -> Any:
    (machine,) = cluster.objects("virtualmachines")
    return machine["spec"]["template"]["spec"]["volumes"]


def test_an_image_is_pushed_once_and_is_the_disk_of_every_uefi_machine(
    cluster: Cluster, hardware: Hardware, own: Path, ipxe: Path, ipxe_disk: Path
) -> None:
    with (
        running_registry(own) as address,
        # The setting of all machines gives way to a machine's own.
        open_kubevirt(
            ClusterConfig(cluster_registry=f"{address}/team", cluster_ipxe_disk="pvc:none")
        ) as backend,
    ):
        for name in ("one", "two"):
            with powered_on(backend, name, firmware="uefi", ipxe=ipxe):
                (volume,) = volumes(cluster)
        pushed = [each for each in requests_in(own) if each.startswith("PUT ")]
    assert volume["containerDisk"]["image"].startswith(f"{address}/team/kboot-ipxe:")
    # Configuration, layer, manifest, and nothing for the second machine.
    assert len(pushed) == 3
    raw = (ipxe_disk.parent / "ipxe.img").read_bytes()
    assert hardware.disks[-2:] == [raw, raw]


def test_without_a_registry_the_run_has_a_claim_that_is_filled_from_its_boot_server(
    cluster: Cluster, hardware: Hardware, ipxe: Path, ipxe_disk: Path
) -> None:
    cluster.virt.storage.cdi = True
    with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(20)):
        for name in ("one", "two"):
            with powered_on(backend, name, firmware="uefi", ipxe=ipxe):
                (volume,) = volumes(cluster)
                (made,) = cluster.objects("datavolumes")
        assert volume["persistentVolumeClaim"] == {"claimName": made["metadata"]["name"]}
        assert made["spec"]["source"]["http"]["url"].startswith(f"http://{backend.run.name}.")
        (owner,) = made["metadata"]["ownerReferences"]
        assert owner["name"] == backend.run.name
    raw = (ipxe_disk.parent / "ipxe.img").read_bytes()
    assert [disk[: len(raw)] for disk in hardware.disks[-2:]] == [raw, raw]
    assert cluster.objects("datavolumes") == []
    assert cluster.objects("persistentvolumeclaims") == []


def test_a_set_of_machines_has_the_disk_as_well(
    cluster: Cluster, ipxe: Path, backend: KubevirtBackend
) -> None:
    cluster.virt.storage.cdi = True
    with (
        backend.serve(Deadline(20)),
        backend.open_replicas(uefi(ipxe, boot_file="http://none/x"), 0, Deadline(20)),
    ):
        (made,) = cluster.objects("datavolumes")
        (replicas,) = cluster.objects("virtualmachineinstancereplicasets")
        (volume,) = replicas["spec"]["template"]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == made["metadata"]["name"]


def test_a_machine_that_stays_is_taken_over_where_the_file_is_not(
    cluster: Cluster, own: Path, ipxe: Path
) -> None:
    with running_registry(own) as address:
        settings = ClusterConfig(cluster_registry=address, cluster_owner="ann")
        spec = uefi(own / "own.efi", name="lab", boot_file="http://none/x")
        (own / "own.efi").write_bytes(ipxe.read_bytes())
        with open_persistent(settings, "lab") as first, first.power_on(spec, Deadline(20)):
            first.keep("a note")
            first.leave()
        (own / "own.efi").unlink()
        with (
            take_over_persistent(settings, "lab") as second,
            second.power_on(spec, Deadline(20)) as machine,
        ):
            machine.check()
    assert cluster.objects("virtualmachines") == []


def test_without_either_one_line_names_both_remedies(
    cluster: Cluster, backend: KubevirtBackend, ipxe: Path
) -> None:
    cluster.virt.storage.cdi = False
    with (
        pytest.raises(ConfigError, match=r"no CDI.*--cluster-registry.*install CDI") as caught,
        powered_on(backend, firmware="uefi", ipxe=ipxe),
    ):
        pytest.fail("it runs")
    assert "\n" not in str(caught.value)
    assert cluster.objects("virtualmachines") == []


def test_what_uefi_cannot_start_is_told_before_anything_is_made(ipxe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.efi cannot be read: No such file"):
        IpxeDisk.of(uefi(tmp_path / "none.efi"))
    with pytest.raises(ConfigError, match=r"is no UEFI program; .* give the ipxe.efi"):
        IpxeDisk.of(uefi(Path(__file__)))
    with pytest.raises(ConfigError, match=r"ipxe.efi is not for aarch64"):
        IpxeDisk.of(uefi(ipxe, architecture="aarch64"))
    assert IpxeDisk.of(uefi(ipxe, boot_disk="root")) is None


@pytest.mark.parametrize("way", ["passwords", "tokens"])
def test_who_is_logged_in_pushes_and_nobody_else(own: Path, way: str) -> None:
    with (
        token_service(own) as tokens,
        running_registry(own, tokens if way == "tokens" else htpasswd(own)) as address,
    ):
        repository = Repository.parse(f"{address}/team", "disk")
        with pytest.raises(ConfigError, match=f"{address} does not take team/disk.*podman login"):
            push(repository, "1", lambda: IMAGE)
        logged_in(own / ".docker" / "config.json", address)
        push(repository, "1", lambda: IMAGE)
        push(repository, "1", lambda: pytest.fail("made again"))


def test_a_registry_with_a_certificate_of_ones_own_authority(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_registry(own, tls=certified(own)) as address:
        repository = Repository.parse(f"https://{address}/team", "disk")
        assert repository.reference("1") == f"{address}/team/disk:1"
        with pytest.raises(InfraError, match=r"not trusted: .*set REQUESTS_CA_BUNDLE") as caught:
            push(repository, "1", lambda: IMAGE)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own / "authority.pem"))
        push(repository, "1", lambda: IMAGE)
        push(repository, "1", lambda: pytest.fail("made again"))


def test_a_registry_that_is_not_there_is_the_hosts_fault(own: Path) -> None:
    with pytest.raises(InfraError, match=r"the registry 127.0.0.1:9 cannot be reached"):
        push(Repository.parse("127.0.0.1:9/team", "disk"), "1", lambda: IMAGE)


@pytest.mark.parametrize(
    ("where", "url"),
    [
        ("registry.example/team", "https://registry.example/v2/team/disk/"),
        ("registry.example", "https://registry.example/v2/disk/"),
        ("http://registry.lan:5000/a/b/", "http://registry.lan:5000/v2/a/b/disk/"),
        ("localhost:5000/team", "http://localhost:5000/v2/team/disk/"),
        ("https://localhost:5000", "https://localhost:5000/v2/disk/"),
        ("docker.io/ann", "https://registry-1.docker.io/v2/ann/disk/"),
    ],
)
def test_a_registry_is_named_as_users_name_it(where: str, url: str) -> None:
    assert ClusterConfig(cluster_registry=where).cluster_registry == where
    assert Repository.parse(where, "disk").url == url


@pytest.mark.parametrize(
    "where", ["team", "registry.example/Team", "oci://registry.example", "a b"]
)
def test_what_is_no_registry_is_told_with_an_example(where: str) -> None:
    with pytest.raises(ConfigError, match=r"such as registry.example/team"):
        ClusterConfig(cluster_registry=where)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("registry.example", True),
        ("https://registry.example", True),
        ("https://registry.example/v1/", True),
        ("registry.example/team", True),
        ("registry.example/other", False),
        ("registry.example:5000", False),
        ("example", False),
    ],
)
@pytest.mark.parametrize("variable", ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"])
def test_credentials_are_found_where_other_programs_keep_them(
    tmp_path: Path, key: str, variable: str, *, found: bool
) -> None:
    place = {
        "REGISTRY_AUTH_FILE": "auth.json",
        "DOCKER_CONFIG": "config.json",
        "XDG_RUNTIME_DIR": "containers/auth.json",
    }[variable]
    path = logged_in(tmp_path / place, key)
    environ = {variable: str(path if variable == "REGISTRY_AUTH_FILE" else tmp_path)}
    wanted = (USER, PASSWORD) if found else None
    assert credentials(Repository.parse("registry.example/team", "disk"), environ) == wanted


def test_the_narrowest_credentials_win_and_broken_ones_are_named(tmp_path: Path) -> None:
    path = logged_in(tmp_path / "auth.json", "registry.example/team")
    text = path.read_text().replace(
        '{"auths": {', '{"auths": {"registry.example": {"auth": "eDp5"}, '
    )
    path.write_text(text)
    environ = {"REGISTRY_AUTH_FILE": str(path)}
    assert credentials(Repository.parse("registry.example/team", "disk"), environ) == (
        USER,
        PASSWORD,
    )
    assert credentials(Repository.parse("registry.example/else", "disk"), environ) == ("x", "y")
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"auth.json, with credentials of registries: "):
        credentials(Repository.parse("registry.example/team", "disk"), environ)
