"""Machines that boot from their own disk: by its boot loader, with the kernel that is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import ClusterConfig, Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, GuestTimeout
from kboot.kernel import read_kernel
from kboot.kubevirt import manifests, vm_manifest
from kboot.machine import MachineSettings, kernel_of, own_kernel, settings_for
from kboot.machine.boot import Boot
from kboot.machine.phases import Expected, Phase
from kboot.machine_spec import Disk, Firmware
from kboot.rootfs import tiny_initramfs
from kboot.session import Session, open_session
from kboot.supervisor.pushes import Pushes, Wanted
from kboot.testing.backend import FakeBackend
from tests.disk_images import DATA, ESP, bootable, gpt
from tests.test_qemu_argv import command, value_of

#: A boot loader's menu would take its time.
CONFIGURATION = """\
linux /vmlinuz console=ttyS0 panic=-1 from=disk
initrd /initrd
boot
"""


@pytest.fixture(scope="module")
def image(quick_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with GRUB, a kernel, and the tiny system as its initramfs."""
    place = tmp_path_factory.mktemp("own-disk")
    files = {"vmlinuz": read_kernel(quick_kernel).image, "initrd": tiny_initramfs()}
    raw = bootable(place / "disk.raw", CONFIGURATION, files)
    qcow2 = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    raw.unlink()
    return qcow2


@pytest.fixture(scope="module", params=["bios", "uefi"])
def firmware(request: pytest.FixtureRequest) -> Firmware:
    found: Firmware = request.param
    return found


@pytest.fixture(scope="module")
def session(
    image: Path, firmware: Firmware, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    config = Config(boot="disk", rootfs=str(image), firmware=firmware, accel="tcg")
    place = tmp_path_factory.mktemp(f"session-{firmware}")
    with pytest.MonkeyPatch.context() as patch:
        # What is saved of this image, nobody will ask for again.
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        with open_session(config, evidence=place / "evidence") as session:
            yield session


def test_it_boots_what_is_on_its_disk_and_the_next_one_is_restored(
    session: Session, quick_kernel: Path
) -> None:
    machine = session.machine(session.settings(session.config), name="own")
    assert machine.boot.durations_s().keys() == {"scheduled", "firmware", "linux", "init", "ready"}
    assert "from=disk" in machine.guest.succeed("cat /proc/cmdline").split()
    assert machine.kernel.release == read_kernel(quick_kernel).release
    assert "from=disk" in machine.command_line.split()
    assert machine.fetches == []
    machine.guest.succeed("echo mine >/root/mark")
    restored = session.machine(session.settings(session.config), name="next")
    assert restored.restored_from
    assert restored.guest.run("cat /root/mark").exit_status != 0
    assert restored.kernel.release == machine.kernel.release


# --------------------------------------------------------------------- which disk, which firmware


def blank_and(path: Path, code: bytes) -> Path:
    """A disk with these bytes at its beginning."""
    with path.open("r+b") as file:
        file.write(code)
    return path


def settings(**values: object) -> MachineSettings:
    config = Config(boot="disk", **values)  # type: ignore[arg-type]
    return settings_for(own_kernel(config), config)


def test_the_disk_that_boots_is_the_image_or_the_named_one_or_the_first(tmp_path: Path) -> None:
    image = blank_and(gpt(tmp_path / "x.raw", (ESP, "", b"x")), b"\xeb")
    found = settings(rootfs=str(image), disk=("data=blank",)).spec
    assert (found.boot_disk, [disk.name for disk in found.disks]) == ("root", ["root", "data"])
    assert settings(disk=(f"a={image}", "b=blank")).spec.boot_disk == "a"
    named = settings(rootfs="disk:b", disk=("a=blank", f"b={image}"))
    assert named.spec.boot_disk == "b"
    assert (named.initrds, named.command_line) == ((), "")
    assert settings(disk=("a=pvc:claim",)).spec.firmware == "bios"


def test_firmware_is_what_the_disk_has_a_boot_loader_for(tmp_path: Path) -> None:
    image = gpt(tmp_path / "x.raw", (DATA, "", b"x"), (ESP, "", b"x"))
    assert settings(rootfs=str(image)).spec.firmware == "uefi"
    with pytest.raises(
        ConfigError, match=r"no boot loader for bios \(no boot code .*firmware uefi"
    ):
        settings(rootfs=str(image), firmware="bios")
    blank_and(image, b"\xeb")
    assert settings(rootfs=str(image)).spec.firmware == "bios"
    assert settings(rootfs=str(image), firmware="uefi").spec.firmware == "uefi"
    neither = gpt(tmp_path / "y.raw", (DATA, "", b"x"))
    with pytest.raises(ConfigError, match=r"for bios .*; give a disk that boots"):
        settings(rootfs=str(neither))
    blank_and(neither, b"\xeb")
    with pytest.raises(ConfigError, match=r"for uefi \(no EFI system partition\); boot it with"):
        settings(rootfs=str(neither), firmware="uefi")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "boot = disk boots what is on a disk, and there is none; give an image"),
        ({"rootfs": "debian"}, "rootfs debian is none; give an image with a boot loader"),
        ({"disk": ("d=blank",)}, "the disk d is blank: nothing on it can boot"),
        ({"rootfs": "disk:x", "disk": ("d=blank",)}, r"no disk is called so \(there are: d\)"),
        ({"kernel": "/vmlinuz", "disk": ("d=pvc:c",)}, r"another one is named \(/vmlinuz\)"),
        ({"cmdline": "debug", "disk": ("d=pvc:c",)}, "cmdline is for a kernel that kboot loads"),
        ({"module": ("ext4",), "disk": ("d=pvc:c",)}, "module is for a kernel that kboot loads"),
    ],
)
def test_what_cannot_boot_is_one_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        settings(**values)
    assert "\n" not in str(raised.value)


def test_without_kernel_and_disk_both_ways_are_told() -> None:
    with pytest.raises(ConfigError, match=r"say which: --kernel=FILE, or .*: --boot disk"):
        kernel_of(Config())


def test_firmware_starts_the_disk_and_nothing_else() -> None:
    spec = settings(disk=("a=pvc:x",)).spec
    (card,) = value_of("-device", command(spec))
    assert card.startswith("virtio-net-pci,")
    assert card.endswith(",romfile=")
    assert "bootfile" not in " ".join(command(spec))
    made = vm_manifest.manifest(
        spec, manifests.Run(identifier="r1", namespace="team", owner_uid="u"), ClusterConfig()
    )
    devices = made["spec"]["template"]["spec"]["domain"]["devices"]
    assert devices["disks"][0]["bootOrder"] == 1
    assert not {"bootOrder", "dhcpOptions"} & devices["interfaces"][0].keys()
    assert devices["interfaces"][0]["model"] == "virtio"


def test_nothing_can_be_pushed_to_such_a_machine() -> None:
    config = Config(boot="disk", disk=("a=pvc:x",))
    with FakeBackend().serve(Deadline(1)) as server:
        pushes = Pushes(server, config, "box")
        push = pushes.accept(pushes.read(config))
        assert (push.urls, push.files, push.load.kernel.release) == ((), (), "")
        with pytest.raises(ConfigError, match="box boots from its disk, and nothing is pushed"):
            pushes.prepare(Wanted(files=[Path("bzImage")]))


# --------------------------------------------------------------------------- what is seen of a boot

EXPECTED = Expected(
    nonce="ab",
    query="m=m0&b=ab",
    script_path="scripts/m0/boot.ipxe",
    kernel_path="",
    initrd_paths={},
    release="",
    command_line="",
    boot_disk="root",
)


def boot_with(*lines: str, again: bool = False) -> Boot:
    boot = Boot(EXPECTED, start=0, again=again)
    boot.reach(Phase.SCHEDULED, 0, "backend")
    for number, line in enumerate(lines, 1):
        boot.see_line(line, float(number))
    return boot


FIRMWARE = ("SeaBIOS (version 1.16.2)", "Booting from Hard Disk...", "GRUB loading.")
BANNER = "[    0.000000] Linux version 6.1.0 (debian) (gcc) #1 SMP"


def test_any_kernel_may_come_up_with_any_command_line() -> None:
    boot = boot_with(*FIRMWARE, BANNER, "[    0.0] Command line: root=/dev/vda1")
    assert boot.current is Phase.INIT
    boot.see_prompt(9)
    assert boot.ready
    assert boot.contradiction() is None
    assert boot.doubt is None


def test_after_a_reset_a_prompt_counts_once_firmware_has_run() -> None:
    boot = boot_with(again=True)
    boot.see_prompt(1)
    assert not boot.ready
    boot.see_line(FIRMWARE[0], 2)
    boot.see_prompt(3)
    assert boot.ready


@pytest.mark.parametrize(
    "line",
    [
        "No bootable device.",
        "BdsDxe: No bootable option or device was found.",
        "Boot failed: not a bootable disk",
        "UEFI Interactive Shell v2.2",
        "Entering rescue mode...",
    ],
)
def test_a_disk_that_does_not_boot_is_told_at_once(line: str) -> None:
    with pytest.raises(GuestError, match="the disk root does not boot: "):
        boot_with(FIRMWARE[0], line)


def test_a_boot_loader_that_starts_no_kernel_is_told_with_the_console() -> None:
    boot = boot_with(*FIRMWARE)
    assert not boot.overdue(1 + 149)
    assert boot.overdue(1 + 151)
    late = boot.late(151)
    assert isinstance(late, GuestTimeout)
    assert "the boot loader on the disk root has started none, or one whose command" in str(late)


# ------------------------------------------------------------------------------------- cloud-init


def test_its_data_is_on_a_disk_that_is_the_same_each_time(tmp_path: Path) -> None:
    from pycdlib import PyCdlib

    user_data = tmp_path / "user-data"
    user_data.write_text("#cloud-config\nhostname: x\n")
    values = {"disk": ("a=pvc:x",), "cloud_init": user_data, "password": "it's"}
    found, again = settings(**values), settings(**values)
    assert found == again
    assert found.user_data == user_data.read_text()
    disk = found.spec.disks[-1]
    assert disk == Disk(name="cidata", kind="image", source=disk.source, read_only=True)
    image = PyCdlib()
    image.open(disk.source)
    assert image.pvd.volume_identifier.strip() == b"cidata"
    texts = {}
    for name in ("user-data", "meta-data", "vendor-data"):
        with image.open_file_from_iso(rr_path=f"/{name}") as file:
            texts[name] = file.read().decode()
    image.close()
    assert texts["user-data"] == user_data.read_text()
    assert '"local-hostname": "kboot"' in texts["meta-data"]
    # It lets us in as root, whatever the user's own data says.
    assert "printf '%s\\n' 'root:it'\"'\"'s' | chpasswd" in texts["vendor-data"]
    assert "text/cloud-config" in texts["vendor-data"]
    other = settings(**{**values, "user": "debian"}).spec.disks[-1]
    assert other.source != disk.source


def test_no_other_disk_is_called_as_its_datas_is(tmp_path: Path) -> None:
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\n")
    with pytest.raises(ConfigError, match="disk cidata: cloud-init's data come on a disk of that"):
        settings(disk=("d=pvc:c", "cidata=blank"), cloud_init=data)


def test_two_of_a_fleet_have_disks_that_tell_them_apart(tmp_path: Path) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text("#cloud-config\n")
    config = Config(boot="disk", disk=("a=pvc:x",), cloud_init=user_data)
    instances = set()
    for name in ("worker-1", "worker-2"):
        found = settings_for(own_kernel(config), config, host_name=name)
        data = Path(found.spec.disks[-1].source).read_bytes()
        assert f'"local-hostname": "{name}"'.encode() in data
        instances |= set(re.findall(rb'"instance-id": "([^"]+)"', data))
    assert len(instances) == 2
