"""Does this kernel boot the way servers boot, does it run, and does it come back by itself?"""

from __future__ import annotations

import pytest

from kboot.crash import CrashReport, Scanner
from kboot.guest import Guest
from kboot.kernel import Kernel
from kboot.machine import Machine, Phase

pytestmark = pytest.mark.kboot_acceptance


def _witnesses(machine: Machine) -> dict[Phase, str]:
    return {phase: milestone.witness for phase, milestone in machine.boot.reached.items()}


# However machines are come by elsewhere, this kernel is booted in this run.
@pytest.mark.kboot(fresh=True)
def test_boots_to_ready_with_both_witnesses(machine: Machine) -> None:
    witnesses = _witnesses(machine)
    assert witnesses[Phase.SCRIPT] == "server"
    assert witnesses[Phase.KERNEL] == "server"
    assert witnesses[Phase.READY] == "console"
    assert machine.boot.contradiction() is None


def test_runs_the_very_kernel_that_was_pushed(machine: Machine, kernel: Kernel) -> None:
    fetched = {fetch.path for fetch in machine.fetches if fetch.status == 200 and fetch.complete}
    assert any(path.endswith(kernel.sha256) for path in fetched)
    assert machine.guest.succeed("uname -r").strip() == kernel.release
    assert machine.guest.succeed("uname -m").strip() == kernel.architecture
    # Firmware may add words of its own.
    running = machine.guest.succeed("cat /proc/cmdline").split()
    assert set(machine.command_line.split()) <= set(running)


def test_logs_in_and_runs_commands(guest: Guest) -> None:
    assert guest.succeed("id -un").strip() == "root"
    assert guest.succeed("echo one; echo two").splitlines() == ["one", "two"]
    assert guest.run("exit 3").exit_status == 3
    assert "kernel" in guest.succeed("ls /proc/sys").split()


def test_kernel_log_has_no_crash_and_no_warning(machine: Machine) -> None:
    # The console shows what its log level lets pass; dmesg has the rest.
    scanner = Scanner()
    events = [*scanner.feed(machine.guest.succeed("dmesg").encode()), *scanner.close()]
    reports = [event for event in events if isinstance(event, CrashReport)]
    assert [report.title for report in (*machine.console.reports, *reports)] == []


def test_reboots_and_returns(machine: Machine) -> None:
    before = machine.boot_id
    machine.reboot()
    assert machine.boot_id != before
    assert _witnesses(machine)[Phase.SCRIPT] == "server"
    assert machine.guest.succeed("echo back").strip() == "back"


def test_recovers_from_a_panic_by_itself(machine: Machine) -> None:
    before = machine.boot_id
    with machine.expect_crash("panic") as crash:
        machine.panic()
    assert crash.report.fatal
    machine.wait_for_reboot()
    assert machine.boot_id != before
    assert _witnesses(machine)[Phase.SCRIPT] == "server"
    assert machine.guest.succeed("echo back").strip() == "back"


def test_survives_a_hard_reset(machine: Machine) -> None:
    before = machine.boot_id
    machine.reset()
    assert machine.boot_id != before
    assert machine.guest.succeed("echo back").strip() == "back"


@pytest.mark.kboot(firmware="uefi", fresh=True)
def test_boots_under_uefi(request: pytest.FixtureRequest, uefi_fault: str | None) -> None:
    if uefi_fault is not None:
        pytest.skip(uefi_fault)
    machine: Machine = request.getfixturevalue("machine")
    assert machine.guest.run("test -d /sys/firmware/efi").exit_status == 0
    assert machine.boot.contradiction() is None
