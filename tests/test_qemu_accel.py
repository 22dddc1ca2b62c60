from __future__ import annotations

import logging
import platform
from pathlib import Path

import pytest

from kboot import arch
from kboot.errors import InfraError
from kboot.machine_spec import MachineSpec
from kboot.qemu import accel
from kboot.qemu.argv import Wiring, argv


def test_the_probe_boots_through_firmware_and_network_into_64_bit_mode() -> None:
    assert accel.probe("qemu-system-x86_64", "tcg") is None


def test_what_qemu_says_is_what_is_wrong(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'failed to set MSR 0x10a' >&2\nexit 134\n")
    qemu.chmod(0o755)
    assert accel.probe(str(qemu), "kvm") == "failed to set MSR 0x10a"


def test_a_guest_that_stops_in_its_firmware_is_no_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_PROBE_LIMIT_S", 0.3)
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nexec sleep 60\n")
    qemu.chmod(0o755)
    assert accel.probe(str(qemu), "kvm") == (
        "a guest does not get through its firmware and iPXE in 0.3 s"
    )


ROWS = pytest.mark.parametrize("row", arch.ARCHITECTURES, ids=lambda row: row.name)


@ROWS
def test_kvm_runs_machines_of_the_hosts_own_architecture_and_no_others(
    row: arch.Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: row.name)
    assert arch.host() is row
    for other in arch.ARCHITECTURES:
        fault = accel.kvm_fault("/bin/false", other) if other is not row else None
        assert other.is_hosts == (other is row)
        assert fault == (
            None
            if other is row
            else f"this host's processor is {row.name}, the machine's {other.name}"
        )


@ROWS
def test_a_machine_of_another_architecture_is_emulated_without_a_word(
    row: arch.Architecture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = next(each for each in arch.ARCHITECTURES if each is not row)
    monkeypatch.setattr(platform, "machine", lambda: other.name)
    with caplog.at_level(logging.DEBUG):
        assert accel.choose("/bin/false", "auto", row) == "tcg"
    assert caplog.records == []
    with pytest.raises(InfraError, match="KVM was asked for and cannot be used: this host's proc"):
        accel.choose("/bin/false", "kvm", row)


@ROWS
def test_under_kvm_a_machine_has_the_hosts_processor(row: arch.Architecture) -> None:
    words = argv(
        MachineSpec(architecture=row.name, firmware=row.firmware("auto")),
        program=row.qemu,
        accelerator="kvm",
        wiring=Wiring.by_hand(),
        flash=None,
    )
    assert words[words.index("-accel") + 1] == "kvm"
    assert words[words.index("-cpu") + 1] == "host"
    # Its interrupt controller, too: "max" is the best that a host's KVM has.
    assert words[words.index("-machine") + 1] == row.machine


@ROWS
def test_whether_kvm_works_is_asked_of_a_guest_that_boots_as_all_others_do(
    row: arch.Architecture,
) -> None:
    # By the network card's ROM where there is a BIOS; else by iPXE that UEFI starts.
    assert (row.kvm_probe is not None) == row.has_bios == row.has_card_roms
