"""Does this kernel boot the way servers boot, does it run, and does it come back by itself?"""

from __future__ import annotations

import pytest

from kboot.artifacts import Kernel
from kboot.boot import Boot, Phase
from kboot.crash import CrashReport, Scanner
from kboot.guest import Guest

pytestmark = pytest.mark.kboot_acceptance


def _witnesses(boot: Boot) -> dict[Phase, str]:
    return {phase: milestone.witness for phase, milestone in boot.milestones.reached.items()}


# However machines are come by elsewhere, this kernel is booted in this run.
@pytest.mark.kboot(fresh=True)
def test_boots_to_ready_with_both_witnesses(boot: Boot) -> None:
    witnesses = _witnesses(boot)
    assert witnesses[Phase.SCRIPT] == "server"
    assert witnesses[Phase.KERNEL] == "server"
    assert witnesses[Phase.READY] == "console"
    assert boot.milestones.contradiction() is None


def test_runs_the_very_kernel_that_was_pushed(boot: Boot, kernel: Kernel) -> None:
    fetched = {fetch.path for fetch in boot.fetches if fetch.status == 200 and fetch.complete}
    assert any(path.endswith(kernel.sha256) for path in fetched)
    assert boot.guest.succeed("uname -r").strip() == kernel.release
    assert boot.guest.succeed("uname -m").strip() == kernel.architecture
    # Firmware may add words of its own.
    running = boot.guest.succeed("cat /proc/cmdline").split()
    assert set(boot.command_line.split()) <= set(running)


def test_logs_in_and_runs_commands(guest: Guest) -> None:
    assert guest.succeed("id -un").strip() == "root"
    assert guest.succeed("echo one; echo two").splitlines() == ["one", "two"]
    assert guest.run("exit 3").exit_status == 3
    assert "kernel" in guest.succeed("ls /proc/sys").split()


def test_kernel_log_has_no_crash_and_no_warning(boot: Boot) -> None:
    # The console shows what its log level lets pass; dmesg has the rest.
    scanner = Scanner()
    events = [*scanner.feed(boot.guest.succeed("dmesg").encode()), *scanner.close()]
    reports = [event for event in events if isinstance(event, CrashReport)]
    assert [report.title for report in (*boot.console.reports, *reports)] == []


def test_reboots_and_returns(boot: Boot) -> None:
    before = boot.boot_id
    boot.reboot()
    assert boot.boot_id != before
    assert _witnesses(boot)[Phase.SCRIPT] == "server"
    assert boot.guest.succeed("echo back").strip() == "back"


def test_recovers_from_a_panic_by_itself(boot: Boot) -> None:
    before = boot.boot_id
    with boot.expect_crash("panic") as crash:
        boot.panic()
    assert crash.report.fatal
    boot.wait_for_reboot()
    assert boot.boot_id != before
    assert _witnesses(boot)[Phase.SCRIPT] == "server"
    assert boot.guest.succeed("echo back").strip() == "back"


def test_survives_a_hard_reset(boot: Boot) -> None:
    before = boot.boot_id
    boot.reset()
    assert boot.boot_id != before
    assert boot.guest.succeed("echo back").strip() == "back"


@pytest.mark.kboot(firmware="uefi", fresh=True)
def test_boots_under_uefi(request: pytest.FixtureRequest, uefi_fault: str | None) -> None:
    if uefi_fault is not None:
        pytest.skip(uefi_fault)
    boot: Boot = request.getfixturevalue("boot")
    assert boot.guest.run("test -d /sys/firmware/efi").exit_status == 0
    assert boot.milestones.contradiction() is None
