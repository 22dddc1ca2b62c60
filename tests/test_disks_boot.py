"""Machines with disks: found by their names, written to, saved, restored, and the images below."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config, read_disks
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.machine import Machine, MachineSettings, settings_for
from kboot.machine_spec import MachineSpec
from kboot.session import open_session
from tests.disk_images import ESP, ROOT, ext4, gpt, tiny_tree
from tests.saved_machines import Place, open_place

#: The last is read-only; the first has all its content below it.
DISKS = ("data={image},size=8", "spare=blank,size=2G", "s=blank,size=16,bus=scsi", "ro={image},ro")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("image") / "image.raw"
    raw.write_bytes(b"the image's own\n".ljust(1 << 20, b"\0"))
    qcow2 = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    return qcow2


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A partitioned image with a root file system."""
    place = tmp_path_factory.mktemp("system")
    root = ext4(place / "root.ext4", tiny_tree(place / "tree"))
    raw = gpt(place / "system.raw", (ESP, "", b"x"), (ROOT, "", root.read_bytes()))
    qcow2 = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    return qcow2


@pytest.fixture(scope="module")
def place(quick_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_place(quick_kernel, tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.fixture(scope="module")
def settings(place: Place, image: Path, system: Path) -> MachineSettings:
    disks = tuple(each.format(image=image) for each in DISKS)
    config = Config(rootfs=str(system), disk=disks, channel="console")
    return settings_for(place.kernel, config)


@pytest.fixture(scope="module")
def saved(place: Place, settings: MachineSettings, image: Path) -> dict[str, str]:
    """A machine that has written to its disks before it was saved, and writes on after that."""
    before = _digest(image)

    def prepare(machine: Machine) -> None:
        machine.guest.succeed("echo before >/dev/disk/by-id/virtio-spare; sync")

    with place.saved(settings, prepare) as machine:
        machine.guest.succeed("echo after >/dev/disk/by-id/virtio-spare; sync")
        return {
            "image": before,
            "root": machine.guest.succeed("cat /etc/hostname; grep ' / ' /proc/mounts"),
            "names": machine.guest.succeed("ls /dev/disk/by-id"),
            "data": machine.guest.succeed("head -n 1 /dev/disk/by-id/virtio-data"),
            "sizes": machine.guest.succeed(
                "for d in vdb vdc sda vdd; do cat /sys/block/$d/size /sys/block/$d/ro; done"
            ),
        }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_guest_finds_its_disks_by_their_names(saved: dict[str, str]) -> None:
    assert saved["names"].split() == [
        "scsi-0QEMU_QEMU_HARDDISK_s",
        "virtio-data",
        "virtio-ro",
        "virtio-root",
        "virtio-spare",
    ]
    assert saved["data"] == "the image's own\n"
    sectors = [8 << 11, 2 << 21, 16 << 11, 1 << 11]
    assert [int(each) for each in saved["sizes"].split()[::2]] == sectors
    assert saved["sizes"].split()[1::2] == ["0", "0", "0", "1"]


def test_the_root_file_system_is_on_its_disk(saved: dict[str, str]) -> None:
    hostname, mount = saved["root"].splitlines()[0], saved["root"].splitlines()[-1]
    assert hostname == "on-disk"
    assert mount.split()[:3] == ["/dev/vda2", "/", "ext4"]


def test_every_restored_machine_has_the_bytes_of_the_instant_it_was_saved_at(
    place: Place, settings: MachineSettings, saved: dict[str, str], image: Path
) -> None:
    for number in range(5):
        with place.restored(settings, f"row{number}") as machine:
            answer = machine.guest.succeed(
                "ls /root; echo mine >/root/mark;"
                "for d in virtio-data virtio-spare scsi-0QEMU_QEMU_HARDDISK_s; do"
                "  head -c 16 /dev/disk/by-id/$d | tr -d '\\0'; echo;"
                f"  echo changed by {number} >/dev/disk/by-id/$d; done; sync;"
                "head -n 1 /dev/vdb"
            )
            assert answer.split("\n") == [
                "the image's own",
                "",
                "before",
                "",
                "",
                f"changed by {number}",
                "",
            ]
    assert _digest(image) == saved["image"]


def test_an_image_that_another_machine_writes_to_is_one_line(place: Place, tmp_path: Path) -> None:
    raw = tmp_path / "shared.raw"
    raw.write_bytes(b"\0" * (1 << 20))
    spec = MachineSpec(boot_file="http://10.0.2.2:1/boot.ipxe")
    node = f"driver=raw,node-name=d,file.driver=file,file.filename={raw}"
    writer = ("-blockdev", node, "-device", "virtio-blk-pci,drive=d")
    reader = MachineSpec(name="reader", disks=read_disks((str(raw),)))
    with (
        place.backend.power_on(
            MachineSpec(boot_file=spec.boot_file, extra_arguments=writer), Deadline(20)
        ),
        pytest.raises(ConfigError, match=f"{raw} is in use by another machine, which writes to it"),
        place.backend.power_on(reader, Deadline(20)),
    ):
        pytest.fail("it runs")


def test_a_full_host_is_told_by_every_wait_until_the_machine_is_reset(
    quick_kernel: Path, tmp_path: Path
) -> None:
    # As a file system that is full: whatever the guest writes finds no space.
    node = (
        "driver=blkdebug,node-name=full,image.driver=null-co,image.size=1048576,"
        "inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.errno=28"
    )
    config = Config(
        kernel=str(quick_kernel),
        accel="tcg",
        module=("virtio_pci", "virtio_blk"),
        qemu_arguments=("-blockdev", node, "-device", "virtio-blk-pci,drive=full"),
    )
    with open_session(config, evidence=tmp_path) as session:
        machine = session.machine(session.settings(config), name="full")
        for _ in range(2):
            with pytest.raises(InfraError, match=r"^disk full: no space left .*; make room$"):
                machine.guest.run("echo >/dev/vda; sync", timeout=20)
        # It waits until the machine is ready again.
        machine.reset()
