from __future__ import annotations

from pathlib import Path

import pytest

from kboot.qemu import accel


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
