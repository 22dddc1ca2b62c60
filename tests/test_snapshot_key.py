"""A saved machine is for exactly what it was made of: each part of that makes it another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kboot.machine import MachineSettings, saved
from kboot.machine_spec import MachineSpec
from kboot.qemu.accel import qemu_version
from kboot.qemu.snapshot import identity, opaque_option, processor_of

QEMU = "/usr/bin/qemu-system-x86_64"
SPEC = MachineSpec(name="m0", boot_file="http://10.0.2.2:1/boot.ipxe")


def parts(spec: MachineSpec) -> dict[str, str]:
    return dict(identity(spec, program=QEMU, accelerator="tcg"))


@pytest.mark.parametrize(
    "change",
    [
        {"memory_mib": 1024},
        {"cpus": 2},
        {"mac_address": "52:54:00:6b:62:02"},
        {"firmware": "uefi"},
        {"extra_arguments": ("-device", "virtio-rng-pci")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_machine_has_another_identity(change: dict[str, object]) -> None:
    assert parts(replace(SPEC, **change)) != parts(SPEC)  # type: ignore[arg-type]


def test_another_accelerator_is_another_identity() -> None:
    kvm = identity(SPEC, program=QEMU, accelerator="kvm")
    assert kvm["command"] != parts(SPEC)["command"]
    # What KVM keeps for a guest is a matter of the host's kernel.
    assert kvm["host kernel"]


def test_another_qemu_is_another_identity(tmp_path: Path) -> None:
    """Of the same version even: a distribution's update, or one that somebody has built."""
    other = tmp_path / "qemu-system-x86_64"
    other.write_text(f'#!/bin/sh\nexec {QEMU} "$@"\n')
    other.chmod(0o755)
    found = dict(identity(SPEC, program=str(other), accelerator="tcg"))
    assert found["qemu"] == parts(SPEC)["qemu"]
    assert found["qemu program"] != parts(SPEC)["qemu program"]
    other.write_text("#!/bin/sh\necho QEMU emulator version 9.1.2\n")
    newer = identity(SPEC, program=str(tmp_path / "." / other.name), accelerator="tcg")
    assert newer["qemu program"] != found["qemu program"]
    assert newer["qemu"] != found["qemu"]


def test_other_firmware_files_are_another_identity(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    other = tmp_path / "qemu-system-x86_64"
    other.write_text(f'#!/bin/sh\n[ "$1" = -L ] && echo {folder} && exit\nexec {QEMU} "$@"\n')
    other.chmod(0o755)
    found = []
    for content in (b"one", b"another"):
        (folder / "bios-256k.bin").write_bytes(content)
        found.append(identity(SPEC, program=str(other), accelerator="tcg")["firmware"])
    assert str(folder) in found[0]
    assert found[0] != found[1]


def test_another_processor_is_another_identity() -> None:
    one = "processor\t: 0\nmodel name\t: Zoo 1\nflags\t\t: fpu avx2\n\nprocessor\t: 1\n"
    assert processor_of(one) == processor_of(one.replace("fpu avx2", "avx2 fpu"))
    assert processor_of(one) != processor_of(one.replace("avx2", "avx512f"))
    assert processor_of(one) != processor_of(one.replace("Zoo 1", "Zoo 2"))


KEYED = {"kernel_sha256": "ab", "initrd_sha256s": ("cd", "ef")}


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_sha256": "ba"},
        {"initrd_sha256s": ("cd",)},
        {"initrd_sha256s": ("ef", "cd")},
        {"command_line": "quiet"},
        {"user": "nobody"},
        {"spec": MachineSpec(architecture="aarch64")},
        {"spec": MachineSpec(firmware_start="saved")},
    ],
    ids=str,
)
def test_another_boot_is_another_saved_machine(change: dict[str, Any]) -> None:
    """Beside the machine: all that the guest was made of, each for itself."""
    settings = MachineSettings()
    keys = {key: value for key, value in change.items() if key in KEYED}
    changed = replace(settings, **{key: change[key] for key in change.keys() - keys.keys()})
    assert saved.parts(changed, **KEYED | keys) != saved.parts(settings, **KEYED)  # type: ignore[arg-type]


def test_names_times_and_passwords_make_no_other_machine() -> None:
    other = MachineSettings(
        spec=MachineSpec(name="m9"), timeout_s=1, password="another", warnings="report"
    )
    assert saved.parts(other, **KEYED) == saved.parts(MachineSettings(), **KEYED)  # type: ignore[arg-type]


def test_the_name_and_the_boot_file_may_change() -> None:
    assert parts(replace(SPEC, name="m1", boot_file="http://10.0.2.2:2/x")) == parts(SPEC)


def test_the_identity_names_qemu_its_firmware_and_the_processor() -> None:
    found = parts(SPEC)
    assert found["qemu"] == qemu_version("qemu-system-x86_64")
    assert "efi-e1000e.rom" in found["firmware"]
    assert "efi-virtio.rom" in parts(replace(SPEC, nic_model="virtio"))["firmware"]
    assert "bios-256k.bin" in found["firmware"]
    assert found["processor"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("-device", "virtio-rng-pci"), None),
        (("-cpu", "max,-avx2"), None),
        (("-drive", "file=disk.img"), "-drive"),
        (("--drive", "file=disk.img"), "--drive"),
        (("-hda", "disk.img"), "-hda"),
        (("-m", "4G"), "-m"),
    ],
)
def test_a_machine_with_state_elsewhere_is_not_saved(
    arguments: tuple[str, ...], fault: str | None
) -> None:
    assert opaque_option(arguments) == fault
