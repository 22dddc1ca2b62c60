"""Machines that start with their firmware up boot as others do, and are judged by as much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.artifacts import read_kernel
from kboot.backend import Firmware
from kboot.boot import Boot, BootSettings, Phase, open_backend, power_on
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.qemu import firmware_state
from kboot.rootfs import tiny_initramfs


@pytest.fixture(scope="module", params=["bios", "uefi"])
def boot(
    request: pytest.FixtureRequest,
    debian_kernel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Boot]:
    """A machine that came up from a saved firmware."""
    firmware: Firmware = request.param
    settings = BootSettings(
        machine_name=f"short-{firmware}",
        firmware=firmware,
        firmware_start="saved",
        initrds=(tiny_initramfs(),),
    )
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend,
            server,
            read_kernel(debian_kernel),
            settings,
            evidence_directory=tmp_path_factory.mktemp("evidence"),
        ) as boot,
    ):
        boot.wait_until_ready()
        yield boot


def test_both_witnesses_saw_the_boot_but_no_dhcp(boot: Boot) -> None:
    witnesses = {phase: each.witness for phase, each in boot.milestones.reached.items()}
    assert witnesses[Phase.SCRIPT] == "server"
    assert witnesses[Phase.KERNEL] == "server"
    assert witnesses[Phase.INITRD] == "server"
    assert witnesses[Phase.LINUX] == "console"
    assert Phase.DHCP not in witnesses
    assert boot.milestones.contradiction() is None
    assert boot.guest.succeed("uname -r").strip() == boot.kernel.release


def test_it_says_so(boot: Boot) -> None:
    assert boot.machine_description.endswith("saved firmware")


def test_a_power_cycle_takes_the_same_way_and_boots_another_life(boot: Boot) -> None:
    before = boot.boot_id
    boot.restart()
    assert boot.boot_id != before
    assert Phase.DHCP not in boot.milestones.reached
    assert boot.milestones.contradiction() is None
    reached = boot.milestones.reached
    assert reached[Phase.HANDOFF].time - boot.milestones.start < 5


def test_the_state_depends_on_the_machine_and_not_on_the_server(tmp_path: Path) -> None:
    parts = firmware_state.firmware_parts({"qemu": "7.2"})
    assert parts != firmware_state.firmware_parts({"qemu": "8.0"})
    firmware_state.serve_first(tmp_path)
    assert "http" not in (tmp_path / "first.ipxe").read_text()
    firmware_state.serve_next(tmp_path, "http://10.0.2.2:1/token/boot.ipxe")
    assert (
        "chain --replace http://10.0.2.2:1/token/boot.ipxe" in (tmp_path / "next.ipxe").read_text()
    )
