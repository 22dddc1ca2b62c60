"""Machines that start with their firmware up boot as others do, and are judged by as much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kernel import read_kernel
from kboot.machine import Machine, MachineSettings, Phase, open_backend, power_on
from kboot.machine_spec import Firmware, MachineSpec
from kboot.qemu import saved_firmware
from kboot.rootfs import tiny_initramfs


@pytest.fixture(scope="module", params=["bios", "uefi"])
def machine(
    request: pytest.FixtureRequest,
    quick_kernel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """A machine that came up from a saved firmware."""
    firmware: Firmware = request.param
    settings = MachineSettings(
        spec=MachineSpec(name=f"short-{firmware}", firmware=firmware, firmware_start="saved"),
        initrds=(tiny_initramfs(),),
    )
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend,
            server,
            read_kernel(quick_kernel),
            settings,
            evidence_directory=tmp_path_factory.mktemp("evidence"),
        ) as machine,
    ):
        machine.wait_until_ready()
        yield machine


def test_both_witnesses_saw_the_boot_but_no_dhcp(machine: Machine) -> None:
    witnesses = {phase: each.witness for phase, each in machine.boot.reached.items()}
    assert witnesses[Phase.SCRIPT] == "server"
    assert witnesses[Phase.KERNEL] == "server"
    assert witnesses[Phase.INITRD] == "server"
    assert witnesses[Phase.LINUX] == "console"
    assert Phase.DHCP not in witnesses
    assert machine.boot.contradiction() is None
    assert machine.guest.succeed("uname -r").strip() == machine.kernel.release


def test_it_says_so(machine: Machine) -> None:
    assert machine.machine_description.endswith("saved firmware")


def test_a_power_cycle_takes_the_same_way_and_boots_another_life(machine: Machine) -> None:
    before = machine.boot_id
    machine.restart()
    assert machine.boot_id != before
    assert Phase.DHCP not in machine.boot.reached
    assert machine.boot.contradiction() is None


def test_the_state_depends_on_the_machine_and_not_on_the_server(tmp_path: Path) -> None:
    parts = saved_firmware.firmware_parts({"qemu": "7.2"})
    assert parts != saved_firmware.firmware_parts({"qemu": "8.0"})
    saved_firmware.serve_first(tmp_path)
    assert "http" not in (tmp_path / "first.ipxe").read_text()
    saved_firmware.serve_next(tmp_path, "http://10.0.2.2:1/token/boot.ipxe")
    assert (
        "chain --replace http://10.0.2.2:1/token/boot.ipxe" in (tmp_path / "next.ipxe").read_text()
    )
