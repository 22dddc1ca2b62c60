"""UEFI machines on a cluster: the disk that they boot iPXE from, and what is said without one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.cli import main
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import open_kubevirt
from kboot.machine_spec import MachineSpec
from tests.kubevirt.cluster import Cluster, images, running_cluster
from tests.kubevirt.cluster.guests import Guest
from tests.kubevirt.cluster.machines import qemu
from tests.kubevirt.powered import powered_on
from tests.kubevirt.recordings import needs_recordings
from tests.kubevirt.talking import talking

BUILDER = Path(__file__).parents[2] / ".ci" / "build_ipxe_disk.py"


class Hardware:
    """What the cluster would run as QEMU machines; those with a disk only talk here."""

    def __init__(self) -> None:
        self.specs: list[MachineSpec] = []

    def __call__(self, spec: MachineSpec, directory: Path, paused: bool) -> Guest:
        self.specs.append(spec)
        make = talking if spec.extra_arguments else qemu
        return make(spec, directory, paused)


@pytest.fixture(scope="module")
def hardware() -> Hardware:
    return Hardware()


@pytest.fixture(scope="module")
def shared_cluster(hardware: Hardware) -> Iterator[Cluster]:
    with running_cluster(hardware) as cluster:
        yield cluster


def build(ipxe: Path, directory: Path) -> tuple[bytes, bytes]:
    """The raw disk and the archive with its image, built anew."""
    subprocess.run([sys.executable, BUILDER, ipxe, directory], check=True)
    return (directory / "ipxe.img").read_bytes(), (directory / "ipxe-disk.tar").read_bytes()


def test_the_same_ipxe_gives_the_same_disk(ipxe_disk: Path, tmp_path: Path) -> None:
    ipxe = tmp_path / "ipxe.efi"
    ipxe.write_bytes((ipxe_disk.parent / "ipxe.efi").read_bytes())
    first = build(ipxe, tmp_path / "one")
    # The times in a FAT are of two seconds.
    time.sleep(2.1)
    ipxe.touch()
    assert build(ipxe, tmp_path / "two") == first
    assert images.disk_of(tmp_path / "one" / "ipxe-disk.tar") == first[0]


def test_the_disk_has_a_system_partition_that_starts_ipxe(ipxe_disk: Path) -> None:
    raw = images.disk_of(ipxe_disk)
    assert raw[510:512] == b"\x55\xaa"
    kind, begin = raw[450], int.from_bytes(raw[454:458], "little")
    assert kind == 0xEF
    image = f"{ipxe_disk.parent / 'ipxe.img'}@@{begin * 512}"
    copied = subprocess.run(
        ["mtype", "-i", image, "::/EFI/BOOT/BOOTX64.EFI"], capture_output=True, check=True
    )
    assert copied.stdout == (ipxe_disk.parent / "ipxe.efi").read_bytes()


def test_an_ipxe_for_another_architecture_makes_a_disk_and_an_image_for_that(
    tmp_path: Path,
) -> None:
    head = b"MZ".ljust(0x3C, b"\0") + (64).to_bytes(4, "little") + b"PE\0\0"
    ipxe = tmp_path / "ipxe-arm64.efi"
    ipxe.write_bytes(head + (0xAA64).to_bytes(2, "little") + bytes(2000))
    build(ipxe, tmp_path / "disk")
    copied = subprocess.run(
        ["mtype", "-i", f"{tmp_path}/disk/ipxe.img@@{2048 * 512}", "::/EFI/BOOT/BOOTAA64.EFI"],
        capture_output=True,
        check=True,
    )
    assert copied.stdout == ipxe.read_bytes()
    assert images.reference(tmp_path / "disk/ipxe-disk.tar") == "localhost/kboot-ipxe-arm64:1"
    with tarfile.open(tmp_path / "disk/ipxe-disk.tar") as archive:
        (older,) = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
        config = json.load(archive.extractfile(older["Config"]) or pytest.fail("no config"))
    assert config["architecture"] == "arm64"


def test_the_archive_is_an_image_of_both_kinds(ipxe_disk: Path) -> None:
    with tarfile.open(ipxe_disk) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        content = {name: file.read() for name, file in files.items() if file}
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(blob).hexdigest() == Path(name).name
    (listed,) = json.loads(content["index.json"])["manifests"]
    manifest = json.loads(content["blobs/" + listed["digest"].replace(":", "/")])
    named = [manifest["config"], *manifest["layers"]]
    assert all(
        len(content["blobs/" + it["digest"].replace(":", "/")]) == it["size"] for it in named
    )
    (older,) = json.loads(content["manifest.json"])
    assert [older["Config"], *older["Layers"]] == [
        "blobs/" + it["digest"].replace(":", "/") for it in named
    ]
    assert older["RepoTags"] == [listed["annotations"]["io.containerd.image.name"]]


@needs_recordings
def test_uefi_without_the_disk_ends_with_what_to_do(
    cluster: Cluster, quick_kernel: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["boot", str(quick_kernel), "--backend", "kubevirt", "--firmware", "uefi"]
    assert main([*command, "--evidence", str(tmp_path / "evidence")]) == 3
    told = capsys.readouterr().err
    # Not because the time was up.
    assert "time limit" not in told
    assert "NBP filesize is 0" in told
    assert "give the machine a disk with iPXE (--cluster-ipxe-disk)" in told
    assert cluster.objects("virtualmachines") == []


def test_a_disk_on_a_volume_claim_is_booted_from(
    cluster: Cluster, hardware: Hardware, ipxe_disk: Path
) -> None:
    raw = ipxe_disk.parent / "ipxe.img"
    cluster.virt.disks.claims["boot"] = raw
    with (
        open_kubevirt(ClusterConfig(cluster_ipxe_disk="pvc:boot")) as backend,
        powered_on(backend, firmware="uefi"),
    ):
        assert backend.firmware_fault("uefi") is None
        assert f"file={raw}" in hardware.specs[-1].extra_arguments[1]


def test_a_disk_that_no_registry_has_is_named_at_once(cluster: Cluster) -> None:
    settings = ClusterConfig(cluster_ipxe_disk="registry/none:1")
    deadline = Deadline(120)
    with (
        open_kubevirt(settings) as backend,
        pytest.raises(ClusterError, match="the image registry/none:1 cannot be pulled"),
        powered_on(backend, firmware="uefi", deadline=deadline),
    ):
        pass
    assert not deadline.expired
