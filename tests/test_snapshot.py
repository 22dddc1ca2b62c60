"""A machine that was saved goes on: as the one that it was, at another time, with other secrets."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.machine import Machine, MachineSettings, Phase, power_on
from kboot.machine_spec import MachineSpec
from kboot.rootfs import tiny_initramfs
from tests.saved_machines import Place, networked, open_place

SPEC = MachineSpec(name="m0", boot_file="http://10.0.2.2:1/boot.ipxe")


@pytest.fixture(scope="module")
def place(debian_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_place(debian_kernel, tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.fixture(scope="module")
def settings(place: Place) -> MachineSettings:
    return networked(place.kernel, MachineSpec(firmware_start="saved"))


@pytest.fixture(scope="module")
def original(place: Place, settings: MachineSettings) -> dict[str, str]:
    """What a machine said about itself before it was saved; its network was up."""

    def prepare(machine: Machine) -> None:
        machine.guest.wait_until_succeeds("ip addr show dev eth0 | grep 10.0.2.15", timeout=30)

    with place.saved(settings, prepare) as machine:
        # It runs on.
        assert machine.guest.succeed("echo on").strip() == "on"
        return {
            "boot_id": machine.boot_id,
            "address": machine.guest.succeed("cat /sys/class/net/eth0/address"),
            "cmdline": machine.guest.succeed("cat /proc/cmdline"),
            "uptime": machine.guest.succeed("cut -d ' ' -f 1 /proc/uptime"),
            "at": str(time.monotonic()),
            "serial": (machine.evidence_directory / "serial.log").read_text(errors="replace"),
        }


@pytest.fixture(scope="module")
def twin(place: Place, settings: MachineSettings, original: dict[str, str]) -> Iterator[Machine]:
    """A machine that went on from there, for tests that only look."""
    assert original
    with place.restored(settings, "twin") as machine:
        yield machine


def test_it_is_the_machine_that_was_booted(
    twin: Machine, original: dict[str, str], place: Place
) -> None:
    assert twin.boot_ids == [original["boot_id"]]
    assert twin.guest.succeed("cat /proc/sys/kernel/random/boot_id").strip() == twin.boot_id
    assert twin.guest.succeed("cat /proc/cmdline") == original["cmdline"]
    assert set(twin.command_line.split()) <= set(original["cmdline"].split())
    assert twin.guest.succeed("uname -r").strip() == place.kernel.release
    assert twin.restored_from


def test_the_witnesses_of_its_boot_are_kept(twin: Machine, place: Place) -> None:
    assert twin.boot.contradiction() is None
    assert twin.boot.reached[Phase.SCRIPT].witness == "server"
    assert twin.boot.reached[Phase.READY].witness == "console"
    assert any(fetch.path.endswith(place.kernel.sha256) for fetch in twin.fetches)
    assert 0 < twin.boot.durations_s()["linux"] < 60


def test_the_console_remembers_what_was_said_before(twin: Machine) -> None:
    texts = [line.text for line in twin.console.lines()]
    assert any("Linux version" in text for text in texts)
    twin.guest.succeed("echo after the restore >/dev/ttyS0")
    twin.console.expect("after the restore", timeout=10, since=0)
    log = (twin.evidence_directory / "serial.log").read_text(errors="replace")
    assert "Linux version" in log
    assert "after the restore" in log


def test_its_clock_is_right_and_its_uptime_goes_on_where_it_was(
    twin: Machine, original: dict[str, str]
) -> None:
    before = time.time()
    guest_time = int(twin.guest.succeed("date +%s"))
    assert before - 2 <= guest_time <= time.time() + 2
    uptime = float(twin.guest.succeed("cut -d ' ' -f 1 /proc/uptime"))
    # The time between saving and restoring has not passed for the guest.
    assert uptime > float(original["uptime"]) - 5
    since_restore = time.monotonic() - twin.console.started_s
    assert uptime < float(original["uptime"]) + since_restore + 2


def test_its_network_works_and_has_the_same_address(
    twin: Machine, original: dict[str, str]
) -> None:
    assert twin.guest.succeed("cat /sys/class/net/eth0/address") == original["address"]
    assert "10.0.2.15" in twin.guest.succeed("ip addr show dev eth0")
    url = twin.server.url("beacon/up")
    assert twin.guest.succeed(f"wget -q -O - {url}", timeout=20).strip() == "ok"


def test_twins_draw_different_random_numbers_from_the_first_one_on(
    place: Place, settings: MachineSettings, original: dict[str, str]
) -> None:
    assert original
    drawn = []
    for number in range(3):
        with place.restored(settings, f"random{number}") as machine:
            drawn.append(machine.guest.succeed("head -c 32 /dev/urandom | md5sum"))
    assert len(set(drawn)) == len(drawn)


def test_it_reboots_from_this_runs_server_under_its_own_name(
    place: Place, settings: MachineSettings, original: dict[str, str]
) -> None:
    with place.restored(settings, "rebooter") as machine:
        machine.reset()
        assert machine.boot_id != original["boot_id"]
        assert len(machine.boot_ids) == 2
        assert machine.boot.contradiction() is None
        new = [fetch for fetch in machine.fetches if "m=rebooter" in fetch.query]
        assert any(fetch.path.endswith(place.kernel.sha256) for fetch in new)
        # The hardware's clock, which the kernel has just read, is right as well.
        assert abs(int(machine.guest.succeed("date +%s")) - time.time()) < 3


def test_ten_in_a_row_are_all_right_and_leave_nothing(
    place: Place, settings: MachineSettings, original: dict[str, str]
) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = 0
    for number in range(10):
        with place.restored(settings, f"row{number}") as machine:
            assert machine.restored_from
            assert machine.boot_id == original["boot_id"]
            assert machine.guest.run("test -e /root/mark").exit_status == 1
            machine.guest.succeed("echo mine >/root/mark")
        before = before or held()
    assert held() <= before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


def test_qemu_does_not_take_another_machines_state(
    place: Place, settings: MachineSettings, original: dict[str, str]
) -> None:
    assert original
    found = place.snapshots.find(settings)
    assert found
    other = replace(SPEC, name="other", memory_mib=256)
    with (
        pytest.raises(InfraError),
        place.backend.power_on(other, Deadline(20), saved=found.directory),
    ):
        pytest.fail("it runs")


def test_a_machine_of_another_boot_is_not_taken_for_the_saved_one(
    place: Place, settings: MachineSettings, original: dict[str, str], tmp_path: Path
) -> None:
    saved = place.snapshots.find(settings)
    assert original
    assert saved
    other = replace(saved, boot_id="01234567-89ab-cdef-0123-456789abcdef")
    with (
        pytest.raises(InfraError, match="another machine was restored: its boot_id is not 01234"),
        power_on(
            *(place.backend, place.server, place.kernel, settings.named("other")),
            evidence_directory=tmp_path,
            saved=other,
        ),
    ):
        pass


def test_a_machine_that_was_not_meant_to_be_saved_says_so(place: Place, tmp_path: Path) -> None:
    with (
        place.backend.power_on(replace(SPEC, name="plain"), Deadline(20)) as vm,
        pytest.raises(InfraError, match="was not started to be saved"),
    ):
        vm.snapshot(tmp_path)


def test_under_uefi_as_well(quick_kernel: Path, tmp_path: Path) -> None:
    settings = MachineSettings(
        spec=MachineSpec(name="uefi", firmware="uefi", firmware_start="saved"),
        initrds=(tiny_initramfs(),),
    )
    with open_place(quick_kernel, tmp_path) as place:
        with place.saved(settings) as machine:
            boot_id = machine.boot_id
        with place.restored(settings, "uefi-twin") as twin:
            assert twin.boot_id == boot_id
            assert twin.guest.succeed("cat /sys/firmware/efi/fw_platform_size").strip() == "64"
