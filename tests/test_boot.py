"""How far a boot is, told from lines and requests alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kboot.backend import Fetch
from kboot.errors import GuestError, GuestTimeout, InfraError, NoReboot, WrongKernel
from kboot.machine import faults
from kboot.machine.boot import Boot
from kboot.machine.phases import BUDGETS_S, Expected, Phase
from kboot.machine_spec import MachineSpec
from kboot.qemu.argv import Accelerator
from kboot.qemu.virtual_machine import QemuVirtualMachine

EXPECTED = Expected(
    nonce="abcd1234",
    query="m=m0&b=abcd1234",
    script_path="scripts/m0/boot.ipxe",
    kernel_path="artifacts/k1",
    initrd_paths={"artifacts/i1": "tiny.cpio.gz", "artifacts/i2": "modules.cpio"},
    release="6.1.0-56-amd64",
    command_line="kboot.nonce=abcd1234 console=ttyS0 panic=-1",
)

BANNER = "[    0.000000] Linux version 6.1.0-56-amd64 (debian) (gcc) #1 SMP"
COMMAND_LINE = "[    0.000000] Command line: kboot.nonce=abcd1234 console=ttyS0 panic=-1"


def fetch(
    path: str, *, query: str = EXPECTED.query, status: int = 200, complete: bool = True
) -> Fetch:
    return Fetch(
        time=0, path=path, query=query, status=status, size=1, complete=complete, user_agent="iPXE"
    )


def boot(*, again: bool = False, expected: Expected = EXPECTED) -> Boot:
    return Boot(expected, start=100.0, again=again)


def follow(machine: Boot) -> None:
    """All that a good boot shows, a second each."""
    machine.reach(Phase.SCHEDULED, 101, "backend")
    machine.see_line("SeaBIOS (version 1.16.2)", 102)
    machine.see_line("net0: 10.0.2.15/255.255.255.0 gw 10.0.2.2", 103)
    machine.see_fetch(fetch("scripts/m0/boot.ipxe", query=""), 104)
    machine.see_line("kboot: script abcd1234", 104)
    machine.see_fetch(fetch("beacon/script"), 104)
    machine.see_fetch(fetch("artifacts/k1"), 105)
    machine.see_fetch(fetch("artifacts/i1"), 106)
    machine.see_fetch(fetch("artifacts/i2"), 106)
    machine.see_fetch(fetch("beacon/handoff"), 107)
    machine.see_line("kboot: handoff abcd1234", 107)
    machine.see_line(BANNER, 108)
    machine.see_line(COMMAND_LINE, 108)
    machine.see_line("[    1.5] Run /init as init process", 109)
    machine.see_prompt(110)


def test_a_good_boot_reaches_every_milestone_in_its_time() -> None:
    machine = boot()
    follow(machine)
    assert machine.ready
    assert machine.contradiction() is None
    assert machine.durations_s() == {phase.value: 1.0 for phase in Phase}


def test_each_milestone_names_its_witness() -> None:
    machine = boot()
    follow(machine)
    server = {phase for phase, each in machine.reached.items() if each.witness == "server"}
    assert server == {Phase.SCRIPT, Phase.KERNEL, Phase.INITRD, Phase.HANDOFF}


def test_a_prompt_alone_is_not_a_boot() -> None:
    machine = boot()
    machine.see_line(BANNER, 108)
    machine.see_prompt(110)
    fault = machine.contradiction()
    assert isinstance(fault, GuestError)
    assert "never fetched boot script in this boot" in str(fault)


def test_another_machines_requests_are_not_ours() -> None:
    machine = boot()
    machine.see_fetch(fetch("artifacts/k1", query="m=m7&b=ffff"), 105)
    machine.see_fetch(fetch("artifacts/i1", query="m=m7&b=ffff", status=404), 105)
    assert machine.reached == {}


def test_half_a_kernel_is_none() -> None:
    machine = boot()
    machine.see_fetch(fetch("artifacts/k1", complete=False), 105)
    assert Phase.KERNEL not in machine.reached


def test_a_404_is_the_hosts_fault_and_names_the_file() -> None:
    with pytest.raises(InfraError, match=r"no initrd modules.cpio \(404\)"):
        boot().see_fetch(fetch("artifacts/i2", status=404), 105)


def test_what_a_guest_asks_for_need_not_be_there() -> None:
    machine = boot()
    follow(machine)
    machine.see_fetch(fetch("scripts/m0/cloud-init/network-config", query="", status=404), 111)
    assert machine.contradiction() is None


def test_a_script_that_stopped_names_the_file_and_explains_the_error() -> None:
    with pytest.raises(
        InfraError, match=r"the initrd tiny.cpio.gz: 404 Not Found \(ENOENT\), .*/err/2d0c61$"
    ):
        boot().see_line("kboot: stopped initrd0 0x2d0c613b", 105)


def test_a_boot_that_ends_in_ipxe_names_its_last_error() -> None:
    machine = boot()
    machine.see_line("Could not start download: Error 0x3e116202 (https://ipxe.org/3e116202)", 101)
    machine.see_line("http://boot/menu... Connection timed out (https://ipxe.org/4c0a6092)", 102)
    error = str(machine.late(60))
    assert error.endswith(
        "; iPXE's last error: connection timed out (ETIMEDOUT) in TCP, ipxe.org/err/4c0a60"
    )
    with pytest.raises(InfraError, match=r"No more network devices; iPXE's last error: connection"):
        machine.see_line("No more network devices", 103)


def test_the_beacon_tells_of_a_failure_that_the_console_did_not_show() -> None:
    with pytest.raises(
        InfraError, match=r"could not load the kernel: connection timed out \(ETIMEDOUT\) in TCP"
    ):
        boot().see_fetch(fetch("beacon/failed/kernel/0x4c0a6092"), 105)


def test_a_script_that_was_fetched_in_another_boot_is_no_witness_of_this_one() -> None:
    machine = boot()
    machine.see_fetch(fetch("scripts/m0/boot.ipxe", query=""), 104)
    machine.see_fetch(fetch("beacon/script", query="m=m0&b=00000000"), 104)
    assert Phase.SCRIPT not in machine.reached
    machine.see_fetch(fetch("beacon/script"), 105)
    assert machine.reached[Phase.SCRIPT].witness == "server"


@pytest.mark.parametrize("path", ["beacon/failed/a/b/c", "beacon/failed/a", "beacon/failed/"])
def test_a_guest_may_ask_for_any_address_below_the_beacon(path: str) -> None:
    machine = boot()
    follow(machine)
    machine.see_fetch(fetch(path), 111)
    assert machine.contradiction() is None


def test_a_kernel_that_runs_cannot_say_that_its_loader_failed() -> None:
    machine = boot()
    follow(machine)
    machine.see_fetch(fetch("beacon/failed/kernel/0x4c0a6092"), 111)
    assert machine.ready


@pytest.mark.parametrize(
    ("cpus", "accelerator", "fast"), [(1, "tcg", True), (10_000, "tcg", False), (255, "kvm", True)]
)
def test_a_machine_that_is_too_slow_makes_no_guest_hang(
    cpus: int, accelerator: Accelerator, fast: bool, tmp_path: Path
) -> None:
    vm = QemuVirtualMachine(
        MachineSpec(cpus=cpus), program="qemu", accelerator=accelerator, directory=tmp_path
    )
    hung = GuestTimeout("the kernel hung before it ran init: nothing more after linux for 90 s")
    told = faults.unless_slow(hung, vm.speed_fault())
    assert isinstance(told, GuestTimeout if fast else InfraError)
    assert fast or "its 10000 processors are emulated by" in str(told)
    still = NoReboot("the machine did not reboot in 30 s")
    assert faults.unless_slow(still, vm.speed_fault()) is still


def test_a_time_limit_of_the_users_own_is_told_as_what_has_run_out() -> None:
    machine = boot()
    machine.see_line("SeaBIOS (version 1.16.2)", 102)
    late = machine.late(1.0, limit_s=1.0)
    assert str(late).startswith("the boot reached its time limit (timeout 1 s): iPXE got no DHCP")
    assert "limit" not in str(machine.late(45.0))


def test_a_kernel_that_ipxe_cannot_start_is_the_kernels_fault() -> None:
    with pytest.raises(GuestError, match="could not start it"):
        boot().see_line("kboot: stopped boot 0x2e008081", 105)


def test_a_failed_attempt_that_is_tried_again_is_not_the_end() -> None:
    machine = boot()
    machine.see_line("kboot: failed kernel 0x4c0a6092 attempt 1", 105)
    follow(machine)
    assert machine.ready


@pytest.mark.parametrize(
    "line",
    [
        "No more network devices",
        "No bootable device.",
        "  PXE-E99: Unexpected network error.",
        # EDK II's own client has failed with IPv4, and would wait for minutes.
        ">>Start PXE over IPv6.",
        ">>Start HTTP Boot over IPv6.",
    ],
)
def test_firmware_that_gives_up_is_the_hosts_fault(line: str) -> None:
    with pytest.raises(InfraError, match="found nothing to boot"):
        boot().see_line(line, 103)


def test_what_the_guest_prints_later_is_not_taken_for_firmware() -> None:
    machine = boot()
    follow(machine)
    machine.see_line("echo No bootable device", 120)


def test_another_release_never_passes() -> None:
    with pytest.raises(WrongKernel, match=r"Linux 6.6.1 came up; .* is 6.1.0-56-amd64"):
        boot().see_line("[    0.000000] Linux version 6.6.1 (someone@x) (gcc) #1 SMP", 108)


def booting(*lines: str, command_line: str = EXPECTED.command_line) -> Boot:
    """A boot whose kernel was started and has printed these lines."""
    machine = boot(expected=dataclasses.replace(EXPECTED, command_line=command_line))
    machine.see_line("kboot: handoff abcd1234", 107)
    for line in lines:
        machine.see_line(line, 108)
    return machine


#: Lines that a busy host's UART has let characters drop from, or that only look like the kernel's.
NO_PROOF = [
    "[    0.000000] Linux version 6.1.0-6-amd64 (debian) (gcc) #1 SMP",
    "[    0.000000] Linux version 6.1.0-56-amd64(debian) (gcc) #1 SMP",
    "[    0.000000] Linux version 6.1.0-amd64 (debian) (gcc) #1 SMP",
    "[    0.000000] Linux version 6.1.0-56amd64 (debian) (gcc) 1 SMP",
    "[    0.000000] Linux verson 6.6.1 (debian) (gcc) #1 SMP",
    "    0.000000] Linux version 6.6.1 (debian) (gcc) #1 SMP",
    "[    0.000000] Linux version 6.6.1 (deb",
    "[    0.000000] Command line: kboot.nonce=abc1234 console=ttyS0 panic=-1",
    "[    0.000000] Command line: kboot.nonce=abcd1234console=ttyS0 panic=-1",
    "[    0.000000] Command line: kboot.nonce=abcdsole=ttyS0 panic=-1",
    "[    0.034000] Kernel command line: kboot.nonce=abcd12 consle=ttyS0 panic=-1",
    "[    0.034000] Kernel command line: kbootnonce=abcd1234 console=ttyS0 panic=-1",
    "[    0.034000] Kernel command line: console=ttyS0",
    "Welcome to ACME Linux version 3.2",
    "Welcome to ACME Linux version 3.2 (gold) (gcc) #1 edition",
    "Linux version 6.6.1 (debian) (gcc) #1 SMP",
    "tdevd: Command line: x",
    "[    2.000000] tdevd: Command line: kboot.nonce=ffff0000 x",
    "Command line: kboot.nonce=ffff0000 x",
    "<5>[    0.000000] Linux version 6.6.1 (debian) (gcc) #1 SMP",
    "last boot: [    0.000000] Linux version 6.6.1 (debian) (gcc) #1 SMP",
    "SeaBIOS (version 1.16.2)",
    "SeaBIOS (version",
    "iPXE initialising devices...ok",
    "BdsDxe: loading Boot0001",
    "kboot: script abcd34",
    "Kernel panic - not syncing: is a line to grep for",
]


@pytest.mark.parametrize("line", NO_PROOF)
def test_a_garbled_line_or_a_programs_words_prove_nothing(line: str) -> None:
    machine = booting(line)
    machine.see_line("[    1.500000] Run /init as init process", 109)
    machine.see_prompt(110)
    assert machine.ready


@pytest.mark.parametrize("line", NO_PROOF)
@pytest.mark.parametrize("before", ["[    1.500000] Run /init as init process", BANNER])
def test_nor_do_they_later_in_the_boot(before: str, line: str) -> None:
    booting(BANNER, COMMAND_LINE, before, line)


@pytest.mark.parametrize(
    "line",
    [
        "[    0.000000] Linux version 6.6.1 (debian) (gcc) #1 SMP",
        "[    0.000000] Command line: kboot.nonce=ffff0000 console=ttyS0",
        "kboot: script ffff0000",
        "kboot: stopped boot 0x2e008081",
    ],
)
def test_a_whole_quotation_after_init_proves_nothing(line: str) -> None:
    booting(BANNER, "[    1.500000] Run /init as init process", line)


@pytest.mark.parametrize("quiet", ["quiet", "loglevel=3"])
def test_a_quiet_kernels_programs_may_quote_another_kernel(quiet: str) -> None:
    quoted = "[    0.000000] Linux version 6.6.1 (debian) (gcc) #1 SMP"
    machine = booting(quoted, command_line=f"console=ttyS0 {quiet}")
    machine.see_prompt(110)
    assert machine.ready


def test_a_kernel_that_prints_more_is_not_quiet() -> None:
    with pytest.raises(WrongKernel):
        booting(
            "[    0.000000] Linux version 6.6.1 (debian) (gcc) #1 SMP", command_line="loglevel=8"
        )


@pytest.mark.parametrize(
    "line",
    [
        "[    0.000000] Linux version 6.1.0-57-amd64 (debian) (gcc) #1 SMP",
        "[    0.000000] Linux version 6.1.0-56-amd64-mine (debian) (gcc) #1 SMP",
        "c[    0.000000][    T0] Linux version 6.6.1 (debian) (gcc) #1 SMP",
        "Probing EDD (edd=off to disable)... o[    0.000000] Linux version 5.10.0 (a@b) (gcc) #1",
    ],
)
def test_a_whole_banner_in_its_place_is_another_kernels(line: str) -> None:
    with pytest.raises(WrongKernel):
        booting(line)


def test_the_same_release_of_another_boot_never_passes() -> None:
    with pytest.raises(WrongKernel, match=r"kboot\.nonce=abcd1234 is not in its command line"):
        booting(BANNER, "[    0.000000] Command line: kboot.nonce=ffff0000 console=ttyS0")


def test_a_guest_that_cannot_be_asked_is_not_blamed_on_a_line_that_proves_nothing() -> None:
    doubtful = "[    0.000000] Command line: console=ttyS0 root=/dev/sda1"
    late = booting(BANNER, doubtful).late(90)
    assert isinstance(late, InfraError)
    assert "could not tell which kernel came up" in str(late)
    # One whole line with the nonce is enough to know.
    known = booting(BANNER, doubtful, "[    0.034000] Kernel command line: x kboot.nonce=abcd1234")
    assert isinstance(known.late(90), GuestTimeout)


def test_a_kernel_that_prints_no_times_is_heard_behind_the_firmwares_words() -> None:
    machine = booting(
        "Probing EDD (edd=off to disable)... ocLinux version 6.1.0-56-amd64 (debian) (gcc) #1 SMP",
        "Command line: kboot.nonce=abcd1234 console=ttyS0 panic=-1 printk.time=0",
        "Run /init as init process",
    )
    assert {Phase.LINUX, Phase.INIT} <= machine.reached.keys()


def test_a_kernel_is_heard_by_any_of_its_lines() -> None:
    assert Phase.LINUX in booting("[    0.000000] BIOS-provided physical RAM map:").reached


def test_a_script_of_another_boot_never_passes() -> None:
    with pytest.raises(InfraError, match="a boot script of another boot"):
        boot().see_line("kboot: script 99", 104)


def test_the_banner_is_found_behind_what_firmware_left_on_its_line() -> None:
    machine = boot()
    machine.see_line("Probing EDD (edd=off to disable)... o" + BANNER, 108)
    assert Phase.LINUX in machine.reached


def test_uefi_puts_its_own_word_before_ours_in_the_command_line() -> None:
    boot().see_line("[    0.0] Command line: kernel kboot.nonce=abcd1234 x", 108)


@pytest.mark.parametrize(
    ("command_line", "advice"),
    [
        ("kboot.nonce=abcd1234 console=tty0", r"no console=ttyS0 \(it has only console=tty0\)"),
        ("kboot.nonce=abcd1234", r"no console=ttyS0 \(it has none\)"),
        ("kboot.nonce=abcd1234 console=ttyS0", "add earlyprintk=ttyS0"),
        ("console=ttyS0 earlyprintk=ttyS0", "died before it could print anything"),
        ("console=uart8250,io,0x3f8 x", "add earlyprintk=ttyS0"),
        ("console=ttyS1,115200 x", "its console is ttyS1, another line than ttyS0, the one that"),
        ("console=tty0 console=hvc0", "its console is hvc0, another line than ttyS0"),
    ],
)
def test_a_silent_kernel_gets_advice_that_fits(command_line: str, advice: str) -> None:
    wanted = dataclasses.replace(EXPECTED, command_line=command_line)
    machine = boot(expected=wanted)
    machine.see_fetch(fetch("beacon/handoff"), 107)
    late = machine.late(30)
    assert isinstance(late, GuestTimeout)
    with pytest.raises(GuestTimeout, match=advice):
        raise late


def test_a_missing_prompt_gets_advice_about_the_console_that_init_has() -> None:
    machine = booting(BANNER, "[    1.500000] Run /bin/sh as init process")
    assert str(machine.late(90)) == "no login prompt: nothing more after init for 90 s"
    elsewhere = "kboot.nonce=abcd1234 console=ttyS0 console=tty0 rdinit=/bin/sh"
    machine = booting(BANNER, "[    1.500000] Run /bin/sh as init process", command_line=elsewhere)
    late = machine.late(90)
    assert isinstance(late, GuestTimeout)
    assert "/dev/console is tty0, the last console= of its command line" in str(late)


def test_a_quiet_kernel_may_be_silent() -> None:
    wanted = Expected(
        nonce="n",
        query="q",
        script_path="s",
        kernel_path="k",
        initrd_paths={},
        release="1",
        command_line="console=ttyS0 quiet",
    )
    machine = boot(expected=wanted)
    for path in ("beacon/script", "k"):
        machine.see_fetch(fetch(path, query="q"), 105)
    machine.see_prompt(110)
    assert machine.contradiction() is None


@pytest.mark.parametrize(
    ("reached", "error"),
    [
        (None, InfraError),
        (Phase.SCHEDULED, InfraError),
        (Phase.FIRMWARE, InfraError),
        (Phase.DHCP, InfraError),
        (Phase.SCRIPT, InfraError),
        (Phase.KERNEL, InfraError),
        (Phase.INITRD, InfraError),
        (Phase.HANDOFF, GuestTimeout),
        (Phase.LINUX, GuestTimeout),
        (Phase.INIT, GuestTimeout),
    ],
)
def test_until_the_kernel_runs_nothing_is_its_fault(
    reached: Phase | None, error: type[Exception]
) -> None:
    machine = boot()
    if reached:
        machine.reach(reached, 105, "console")
    assert isinstance(machine.late(30), error)


def test_a_phase_is_overdue_when_its_own_budget_is_used_up() -> None:
    machine = boot()
    machine.reach(Phase.HANDOFF, 105, "console")
    assert not machine.overdue(105 + BUDGETS_S[Phase.LINUX] - 1)
    assert machine.overdue(105 + BUDGETS_S[Phase.LINUX] + 1)


def test_a_kernel_that_traces_its_functions_may_take_longer() -> None:
    traced = boot(expected=dataclasses.replace(EXPECTED, command_line="ftrace=function"))
    traced.reach(Phase.HANDOFF, 105, "console")
    assert not traced.overdue(105 + BUDGETS_S[Phase.LINUX] + 1)
    assert traced.overdue(105 + 3 * BUDGETS_S[Phase.LINUX] + 1)


def test_without_initramfs_the_kernel_is_followed_by_the_handoff() -> None:
    wanted = Expected(
        nonce="n",
        query="q",
        script_path="s",
        kernel_path="k",
        initrd_paths={},
        release="1",
        command_line="",
    )
    machine = boot(expected=wanted)
    machine.see_fetch(fetch("k", query="q"), 105)
    assert machine.current is Phase.HANDOFF


def test_after_a_reset_only_what_comes_after_it_counts() -> None:
    machine = boot(again=True)
    machine.see_line(BANNER, 101)  # somebody ran dmesg
    machine.see_prompt(101)
    assert machine.reached == {}
    follow(machine)
    assert machine.ready


@pytest.mark.parametrize(
    "line",
    [
        "[    0.010000] efi: EFI v2.7 by EDK II",
        "[    1.000000] ACPI: UEFI 0x000000001FFE0000",
        "starting the iPXE server",
        "SeaBIOS (version",
        "ver=U-Boot 2020.01 (Apr 20 2020 - 23:29:25 +0000)",
        "kboot: script ffff0000",
    ],
)
def test_words_about_firmware_begin_no_boot(line: str) -> None:
    machine = boot(again=True)
    machine.see_line(line, 101)
    machine.see_prompt(101)
    assert machine.reached == {}


@pytest.mark.parametrize(
    "line",
    [
        "SeaBIOS (version 1.16.2-debian-1.16.2-1)",
        "linux login: SeaBIOS (version 1.16.2)",
        'BdsDxe: loading Boot0001 "UEFI PXEv4 (MAC:525400123456)" from PciRoot(0x0)/Pci(0x1,0x0)',
        "UEFI firmware (version 2022.11-6 built at 21:17:29 on Jan 1 2023)",
        "iPXE (https://ipxe.org) 01:00.0 CA00 PCI2.10 PnP PMM+1EFC6760+1EF06760 CA00",
        "iPXE initialising devices...ok",
        "kboot: script abcd1234",
    ],
)
def test_firmware_begins_the_next_boot_and_a_prompt_is_still_the_old_ones(line: str) -> None:
    machine = boot(again=True)
    machine.see_line(line, 101)
    machine.see_prompt(101)
    assert set(machine.reached) == {Phase.FIRMWARE}


def test_a_machine_that_does_not_come_back_is_the_guests_fault() -> None:
    machine = boot(again=True)
    machine.reach(Phase.SCHEDULED, 100, "backend")
    late = machine.late(30)
    assert isinstance(late, GuestTimeout)
    assert "did not reboot in 30 s" in str(late)


def test_no_milestone_is_before_the_start() -> None:
    machine = boot(again=True)
    machine.see_line("SeaBIOS (version 1.16.2-debian-1.16.2-1)", 99.96)
    machine.see_fetch(fetch("beacon/script"), 99.9)
    seconds = {phase: each.time - machine.start for phase, each in machine.reached.items()}
    assert seconds == {Phase.FIRMWARE: 0.0, Phase.SCRIPT: 0.0}
