"""Disks of machines on a cluster: what is asked for, what the guest sees, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kboot.config import ClusterConfig, Config, read_disks
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import KubevirtBackend, disks, manifests, vm_manifest
from kboot.machine_spec import MachineSpec
from kboot.session import open_session
from tests.kubevirt import schema
from tests.kubevirt.cluster import Cluster, images
from tests.kubevirt.powered import powered_on
from tests.kubevirt.recordings import needs_recordings

RUN = manifests.Run(identifier="r123456789", namespace="team", owner_uid="c0ffee")
DECLARED = (
    "d=blank,size=64",
    "i=container:registry/base:1,bus=scsi",
    "p=pvc:data",
    "k=pvc:data,keep",
    "r=pvc:data,ro",
)


def instance(*declared: str, **settings: Any) -> dict[str, Any]:
    spec = MachineSpec(boot_file="http://kboot/boot.ipxe", disks=read_disks(declared))
    made = vm_manifest.manifest(spec, RUN, ClusterConfig(**settings))
    found: dict[str, Any] = made["spec"]["template"]["spec"]
    return found


def test_each_disk_is_a_disk_and_a_volume() -> None:
    made = instance(*DECLARED, cluster_pull_secrets=("registry",))
    assert made["domain"]["devices"]["disks"] == [
        {"name": "disk-d", "serial": "d", "disk": {"bus": "virtio"}},
        {"name": "disk-i", "serial": "i", "disk": {"bus": "scsi"}},
        {"name": "disk-p", "serial": "p", "disk": {"bus": "virtio"}},
        {"name": "disk-k", "serial": "k", "disk": {"bus": "virtio"}},
        {"name": "disk-r", "serial": "r", "disk": {"bus": "virtio", "readonly": True}},
    ]
    claim = {"persistentVolumeClaim": {"claimName": "data"}}
    image = {"image": "registry/base:1", "imagePullSecret": "registry"}
    assert made["volumes"] == [
        {"name": "disk-d", "emptyDisk": {"capacity": "64Mi"}},
        {"name": "disk-i", "containerDisk": image},
        # Nothing is written to a claim unless it is to be kept.
        {"name": "disk-p", "ephemeral": claim},
        {"name": "disk-k", **claim},
        {"name": "disk-r", **claim},
    ]


@needs_recordings
def test_the_api_server_knows_every_field_of_the_disks() -> None:
    spec = MachineSpec(boot_file="http://kboot/", firmware="uefi", disks=read_disks(DECLARED))
    settings = ClusterConfig(cluster_ipxe_disk="registry/ipxe:1")
    assert schema.faults(vm_manifest.manifest(spec, RUN, settings)) == []


def test_the_disk_with_ipxe_stays_the_first_to_boot_from() -> None:
    spec = MachineSpec(boot_file="http://kboot/", firmware="uefi", disks=read_disks(("blank",)))
    made = vm_manifest.manifest(spec, RUN, ClusterConfig(cluster_ipxe_disk="registry/ipxe:1"))
    devices = made["spec"]["template"]["spec"]["domain"]["devices"]
    assert [disk.get("bootOrder") for disk in devices["disks"]] == [1, None]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("x.img", "a URL (with CDI), a container image (container:IMAGE) or a volume claim"),
        ("https://example.org/x.img", "not known before it is imported; add size=SIZE"),
        ("https://example.org/x.img#sha256=" + 64 * "0", "compares no checksum"),
        ("container:x,keep", "not known before it is imported; add size=SIZE"),
        ("container:x,size=5", "as large as its container image; leave out size"),
        ("pvc:x,size=5", "as large as its claim; leave out size"),
        ("blank,bus=nvme", "KubeVirt has no NVMe disks"),
    ],
)
def test_what_a_cluster_has_not_is_refused_with_the_remedy(declared: str, words: str) -> None:
    (disk,) = read_disks((declared,))
    assert words in str(disks.fault(disk))


def test_a_guest_on_the_cluster_has_its_disks(
    cluster: Cluster, quick_kernel: Path, tmp_path: Path
) -> None:
    archive, claim = tmp_path / "base.tar", tmp_path / "claim.raw"
    images.disk_image(archive, "registry/base:1", b"of the image\n".ljust(1 << 20, b"\0"))
    claim.write_bytes(b"of the claim\n".ljust(1 << 20, b"\0"))
    cluster.virt.disks.images["registry/base:1"] = archive
    cluster.virt.disks.claims["data"] = claim
    made = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "team"},
        "spec": {"resources": {"requests": {"storage": "1Mi"}}},
    }
    cluster.call(lambda: cluster.store.create("persistentvolumeclaims", made))
    config = Config(
        kernel=str(quick_kernel),
        backend="kubevirt",
        disk=(
            *("d=blank,size=64", "i=container:registry/base:1,bus=scsi", "p=pvc:data"),
            "c=clone:data",
        ),
    )
    with open_session(config, evidence=tmp_path / "evidence") as session:
        machine = session.machine(session.settings(config), name="disks")
        said = machine.guest.succeed(
            "cd /dev/disk/by-id; cat /sys/block/vda/size; head -n 1 scsi-0QEMU_QEMU_HARDDISK_i;"
            "head -n 1 virtio-p; head -n 1 virtio-c;"
            "for d in *; do echo changed >$d; done; sync; head -n 1 virtio-p"
        )
        assert said.splitlines() == [
            *("131072", "of the image", "of the claim", "of the claim", "changed")
        ]
    assert claim.read_bytes().startswith(b"of the claim\n")


def test_what_the_cluster_does_not_have_is_named(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    cluster.virt.disks.claims.clear()
    with (
        pytest.raises(ClusterError, match=r"there is no volume claim team/none; create it.*--disk"),
        powered_on(backend, disks=read_disks(("pvc:none",))),
    ):
        pytest.fail("it runs")
    with (
        pytest.raises(ClusterError, match=r"registry/none:1 cannot be pulled .ErrImagePull"),
        powered_on(backend, "other", disks=read_disks(("container:registry/none:1",))),
    ):
        pytest.fail("it runs")


def test_a_machine_that_a_cluster_has_not_is_refused_before_anything_starts(
    cluster: Cluster, debian_kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").touch()
    image = tmp_path / "root.img"
    image.write_bytes((bytes(0x438) + b"\x53\xef").ljust(1 << 17, b"\0"))
    config = Config(kernel=str(debian_kernel), backend="kubevirt")
    no_directories = "a cluster's machine does not see directories of this host; give it a disk"
    with open_session(config, evidence=tmp_path / "evidence") as session:
        for wanted, words in (
            (Config(disk=("blank,bus=nvme",)), "disk disk0: KubeVirt has no NVMe disks"),
            (Config(share=(f"{tmp_path}:t",)), f"share {tmp_path}: {no_directories}"),
            (Config(rootfs=str(tmp_path)), f"share {tmp_path}: {no_directories}"),
            (Config(rootfs=str(image)), f"disk root: a cluster's machine does not read {image}"),
            (Config(numa=2, cpus=2), "machine .*: on a cluster a machine has the NUMA nodes of"),
            (Config(nics=2), "machine .*: a pod has one network: more cards need networks of"),
        ):
            with pytest.raises(ConfigError, match=words) as raised:
                session.machine(session.settings(wanted), name="refused")
            assert "\n" not in str(raised.value)
    assert cluster.objects("virtualmachines") == []
