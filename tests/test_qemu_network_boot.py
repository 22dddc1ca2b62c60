"""UEFI machines boot with iPXE whatever their network card's ROM does."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from kboot import arch
from kboot.checks import examine
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.kernel import read_kernel
from kboot.machine import MachineSettings, open_backend, power_on
from kboot.machine_spec import Firmware, MachineSpec
from kboot.qemu import network_boot, saved_firmware
from kboot.qemu.checks import LOCAL_CHECKS
from kboot.qemu.virtual_machine import QemuVirtualMachine
from kboot.rootfs import tiny_initramfs

QEMU = "/usr/bin/qemu-system-x86_64"
IPXE = Path(__file__).parent.parent / "build" / "ipxe" / "ipxe.efi"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noting_qemu(directory: Path, card: str) -> Path:
    """A QEMU with another network card, which notes the machines that it is started for."""
    program = directory / "qemu"
    program.write_text(
        f'#!/bin/bash\necho "$*" >>{directory}/calls\nexec {QEMU} "${{@/#e1000e,/{card},}}"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def qemu_without_rom(tmp_path: Path) -> Path:
    """No driver for its card: UEFI finds nothing to boot."""
    return noting_qemu(tmp_path, "e1000e,romfile=")


@pytest.fixture
def qemu_with_edk2(tmp_path: Path) -> Path:
    """EDK II has a driver for its card, and so its own client boots, as with Debian 13's ROM."""
    return noting_qemu(tmp_path, "virtio-net-pci,romfile=")


def machines(program: Path) -> list[str]:
    """The names of those that were switched on."""
    calls = (program.parent / "calls").read_text().splitlines()
    return [call.split()[1] for call in calls if call.startswith("-name")]


def efi_program(path: Path, *, machine: int = 0x8664) -> Path:
    header = b"PE\0\0" + machine.to_bytes(2, "little")
    start = b"MZ".ljust(0x3C, b"\0") + (0x80).to_bytes(4, "little") + bytes(64)
    path.write_bytes(start + header + bytes(100))
    return path


def row(*places: Path) -> arch.Architecture:
    """The architecture of the tests, on a host that has iPXE in these places."""
    return replace(arch.DEFAULT, ipxe_places=places)


def test_the_first_program_that_is_there_is_the_hosts(tmp_path: Path) -> None:
    arm64 = efi_program(tmp_path / "arm64.efi", machine=0xAA64)
    (tmp_path / "text.efi").write_text("none")
    fitting = efi_program(tmp_path / "ipxe.efi")
    others = (tmp_path / "absent.efi", tmp_path / "text.efi", arm64)
    assert network_boot.find_program(architecture=row(*others, fitting)) == fitting
    assert network_boot.find_program(architecture=row(*others)) is None
    with pytest.raises(InfraError, match=r"apt-get install ipxe .*ipxe = PATH"):
        network_boot.require_program(architecture=row(*others))


@pytest.mark.parametrize(
    ("content", "fault"),
    [(None, "cannot be read"), (b"#!ipxe\n", "is no iPXE: neither"), (b"", "is no iPXE")],
)
def test_a_wrong_program_is_the_users_mistake(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "my.efi"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"ipxe: {path} {fault}"):
        network_boot.read_ipxe(path, "uefi")


def test_a_program_for_another_processor_is_the_users_mistake(tmp_path: Path) -> None:
    path = efi_program(tmp_path / "my.efi", machine=0xAA64)
    with pytest.raises(ConfigError, match="is not for x86_64"):
        network_boot.read_ipxe(path, "uefi")


def test_a_program_that_is_cut_off_is_the_users_mistake(tmp_path: Path) -> None:
    path = efi_program(tmp_path / "my.efi")
    start = bytearray(path.read_bytes())
    # One section: 1000 bytes from 500 on.
    start[0x80 + 6 : 0x80 + 8] = (1).to_bytes(2, "little")
    start[0x98 + 16 : 0x98 + 24] = struct.pack("<II", 1000, 500)
    path.write_bytes(start.ljust(1500, b"\0"))
    assert not network_boot.read_ipxe(path, "uefi").is_rom
    path.write_bytes(start.ljust(1499, b"\0"))
    with pytest.raises(ConfigError, match=rf"ipxe: {path} is cut off: it has 1,499 of 1,500 bytes"):
        network_boot.read_ipxe(path, "uefi")


def rom(*codes: int) -> bytes:
    """An option ROM with an image for each type of code."""
    images = []
    for number, code in enumerate(codes, 1):
        last = 0x80 if number == len(codes) else 0
        head = b"\x55\xaa".ljust(0x18, b"\0") + (0x20).to_bytes(2, "little")
        pcir = b"PCIR".ljust(0x10, b"\0") + struct.pack("<HHBB", 2, 0, code, last)
        images.append((head.ljust(0x20, b"\0") + pcir).ljust(1024, b"\0"))
    return b"".join(images)


def test_a_rom_for_the_other_firmware_is_the_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "mine.rom"
    for content, fitting in (
        (rom(0), ["bios"]),
        (rom(3), ["uefi"]),
        (rom(0, 3), ["bios", "uefi"]),
        # Who knows what it is: a header that leads nowhere.
        (rom(0, 3)[:1024], ["bios", "uefi"]),
    ):
        path.write_bytes(content)
        firmwares: tuple[Firmware, ...] = ("bios", "uefi")
        for firmware in firmwares:
            if firmware in fitting:
                assert network_boot.read_ipxe(path, firmware).is_rom
            else:
                with pytest.raises(ConfigError, match=rf"ipxe: {path} is a ROM without an image f"):
                    network_boot.read_ipxe(path, firmware)


@pytest.mark.parametrize(
    ("content", "firmware", "fault"),
    [
        (bytes(0x202) + b"HdrS", "uefi", "is for a BIOS; give a UEFI machine an ipxe.efi"),
        (None, "bios", "is for UEFI; give a BIOS a .rom or ipxe.lkrn"),
    ],
)
def test_an_ipxe_for_the_other_firmware_is_the_users_mistake(
    tmp_path: Path, content: bytes | None, firmware: Firmware, fault: str
) -> None:
    path = efi_program(tmp_path / "my.efi")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        network_boot.read_ipxe(path, firmware)


def test_an_ipxe_is_told_by_its_content_but_for_what_another_one_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(b"\x55\xaa" + bytes(510))
    assert network_boot.read_ipxe(path, "uefi").is_rom
    path.write_bytes(bytes(0x202) + b"HdrS")
    assert not network_boot.read_ipxe(path, "bios").is_rom
    (tmp_path / "undionly.kpxe").write_bytes(bytes(1000))
    assert network_boot.read_ipxe(tmp_path / "undionly.kpxe", "bios").is_loaded
    with pytest.raises(ConfigError, match=r"is for a BIOS; give a UEFI machine an ipxe.efi"):
        network_boot.read_ipxe(tmp_path / "undionly.kpxe", "uefi")


@pytest.mark.usefixtures("own_cache")
def test_what_the_rom_does_is_found_out_once(qemu_with_edk2: Path) -> None:
    assert not network_boot.rom_has_ipxe(str(qemu_with_edk2), "tcg")
    assert not network_boot.rom_has_ipxe(str(qemu_with_edk2), "tcg")
    assert machines(qemu_with_edk2) == ["kboot-probe"]


@pytest.mark.usefixtures("own_cache")
def test_a_rom_that_says_nothing_in_time_is_the_hosts_fault_and_not_remembered(
    qemu_with_edk2: Path, tmp_path: Path
) -> None:
    with pytest.raises(InfraError, match="UEFI machines do not come to boot from the network"):
        network_boot.rom_has_ipxe(str(qemu_with_edk2), "tcg", limit_s=0.5)
    assert [*tmp_path.rglob("rom-has-ipxe.json")] == []


def test_a_firmware_that_boots_without_ipxe_is_not_waited_for(
    qemu_with_edk2: Path, tmp_path: Path
) -> None:
    saved_firmware.serve_first(tmp_path)
    machine = QemuVirtualMachine(
        MachineSpec(name="edk2", boot_file=saved_firmware.FIRST_BOOT_FILE, firmware="uefi"),
        program=str(qemu_with_edk2),
        accelerator="tcg",
        directory=tmp_path,
        savable=True,
        tftp=tmp_path,
    )
    (tmp_path / "saved").mkdir()
    deadline = Deadline(300)
    with pytest.raises(InfraError, match="EDK II's own client"):
        saved_firmware.saver(machine, deadline)(tmp_path / "saved")
    assert not deadline.expired


@pytest.mark.usefixtures("own_cache")
def test_doctor_says_which_ipxe_boots_uefi_machines(qemu_without_rom: Path) -> None:
    checks = [check for check in LOCAL_CHECKS if check.subject == "uefi"]
    config = Config(accel="tcg", firmware="uefi", qemu=str(qemu_without_rom))
    (found,) = examine(config, checks)
    present = network_boot.find_program()
    assert found.level == ("ok" if present else "error")
    assert (f"booted by {present}" if present else "apt-get install ipxe") in found.text


@pytest.mark.usefixtures("own_cache")
def test_a_machine_without_a_rom_boots_from_the_network_again_and_again(
    qemu_without_rom: Path, quick_kernel: Path, tmp_path: Path
) -> None:
    config = Config(accel="tcg", qemu=str(qemu_without_rom), ipxe=IPXE)
    settings = MachineSettings(
        spec=MachineSpec(name="without-rom", firmware="uefi"),
        initrds=(tiny_initramfs(),),
        timeout_s=120,
    )
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    with (
        open_backend(config) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend, server, read_kernel(quick_kernel), settings, evidence_directory=evidence
        ) as machine,
    ):
        machine.wait_until_ready()
        first = machine.guest.run("cat /proc/sys/kernel/random/boot_id").stdout
        machine.reset()
        assert machine.guest.run("cat /proc/sys/kernel/random/boot_id").stdout != first
        assert machine.guest.run("ls /sys/block").stdout.split() == []
    assert f"-kernel {IPXE}" in (evidence / "qemu.argv").read_text()
    # The program was given: nothing had to be found out.
    assert machines(qemu_without_rom) == ["kboot-without-rom"]
