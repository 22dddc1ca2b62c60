"""The stream: pieces, chains, resets, cut reports, long lines."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kboot.crash import CrashKind, CrashReport, Event, Opened, Scanner
from tests.crash.crash_logs import GOLDEN, disguise, encode, reports, scan

BY_NAME = {golden.name: golden for golden in GOLDEN}
ALL = b"".join(encode(disguise(golden, "time and task")) for golden in GOLDEN)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30000), max_size=40))
def test_no_cut_of_the_stream_changes_an_event(sizes: list[int]) -> None:
    scanner = Scanner()
    events: list[Event] = []
    position = 0
    for size in sizes:
        events += scanner.feed(ALL[position : position + size])
        position += size
    events += scanner.feed(ALL[position:]) + scanner.close()
    assert events == EXPECTED


EXPECTED = scan(ALL)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2000))
def test_no_bytes_break_it(noise: bytes) -> None:
    golden = BY_NAME["divide"]
    found = reports(noise + b"\n" + encode(disguise(golden, "time")))
    assert golden.title in {report.title for report in found}


def test_an_oops_and_the_panic_it_causes_are_two_reports_in_a_chain() -> None:
    oops, panic = reports(encode(BY_NAME["gpf-4.14"].lines))
    assert panic.title == "panic: Fatal exception"
    assert panic.caused_by == oops
    assert panic.fatal
    assert "Kernel Offset: disabled" in panic.text


PANIC_ON_WARN = """\
WARNING: CPU: 0 PID: 3 at lib/refcount.c:187 refcount_sub_and_test+0x1a0/0x200
Kernel panic - not syncing: panic_on_warn set ...

CPU: 0 PID: 3 Comm: testd Not tainted 4.14.0 #1
Call Trace:
 dump_stack+0x194/0x257
 panic+0x1e4/0x417
 __warn+0x1c4/0x1d9
 report_bug+0x211/0x2d0
 fixup_bug+0x40/0x90
 do_trap+0x260/0x390
 do_error_trap+0x120/0x390
 do_invalid_op+0x1b/0x20
 invalid_op+0x18/0x20
RIP: 0010:refcount_sub_and_test+0x1a0/0x200
RSP: 0018:ffff8801d9bb7798 EFLAGS: 00010286
 refcount_dec_and_test+0x1a/0x20
 chan_release+0x44/0x60
 chan_close+0x1a/0x30
Kernel Offset: disabled
Rebooting in 86400 seconds..
""".splitlines()


def test_the_trace_after_a_panic_line_belongs_to_the_warning_too() -> None:
    warning, panic = reports(encode(PANIC_ON_WARN))
    assert (warning.kind, warning.function) == (CrashKind.REFCOUNT, "chan_release")
    assert (panic.kind, panic.caused_by) == (CrashKind.PANIC, warning)
    assert warning.fatal
    assert panic.end_line == warning.end_line == len(PANIC_ON_WARN)


def test_quiet_completes_the_report_and_the_scanner_goes_on() -> None:
    scanner = Scanner()
    first = scanner.feed(encode(["[    1.000000] Kernel panic - not syncing: one"]))
    assert [type(event) for event in first] == [Opened]
    assert [type(event) for event in scanner.quiet()] == [CrashReport]
    assert scanner.quiet() == []
    again = scanner.feed(encode(["[    2.000000] divide error: 0000 [#2] SMP"]))
    assert again == [Opened(kind=CrashKind.DIVIDE_ERROR, line=2, offset=48)]
    assert [type(event) for event in scanner.close()] == [CrashReport]


def test_a_last_line_without_its_end_counts() -> None:
    assert reports(b"[    1.000000] Kernel panic - not syncing: cut")[0].title == "panic: cut"


def test_a_report_without_its_end_marker_is_truncated() -> None:
    lines = BY_NAME["divide"].lines
    assert not reports(encode(lines))[0].truncated
    assert reports(encode(lines[:-1]))[0].truncated


LINUX = "[    0.000000] Linux version 6.1.0 (a@b) (gcc 12) #1 SMP"
SEABIOS = "SeaBIOS (version 1.16.2-debian-1.16.2-1)"


@pytest.mark.parametrize(
    "banner",
    [
        *(LINUX, SEABIOS, "U-Boot 2023.07 (Jul 11 2023 - 15:20:44)"),
        "Booting the kernel.",
        *("Decompressing Linux... Parsing ELF... done.", "Booting the kernel (entry_offset: 0x0)."),
        "Uncompressing Linux... done, booting the kernel.",
    ],
)
def test_a_second_banner_without_a_goodbye_is_an_unexpected_reset(banner: str) -> None:
    report = reports(encode([SEABIOS, LINUX, "[    2.000000] Run /init", banner]))[0]
    assert (report.kind, report.start_line, report.fatal) == (CrashKind.UNEXPECTED_RESET, 4, True)


@pytest.mark.parametrize(
    "goodbye",
    [
        "[    9.000000] reboot: Restarting system",
        "[    9.000000] Rebooting in 5 seconds..",
        "[    9.000000] kexec_core: Starting new kernel",
    ],
)
def test_a_banner_after_a_goodbye_is_none(goodbye: str) -> None:
    assert scan(encode([SEABIOS, LINUX, goodbye, SEABIOS, LINUX])) == []


def test_a_banner_after_expect_reset_is_none() -> None:
    scanner = Scanner()
    assert scanner.feed(encode([SEABIOS, LINUX])) == []
    scanner.expect_reset()
    assert scanner.feed(encode([SEABIOS, LINUX])) == []
    assert [event for event in scanner.feed(encode([SEABIOS])) if isinstance(event, Opened)]


BOOT = [
    LINUX,
    "[    0.000000] Command line: console=ttyS0 earlyprintk=ttyS0,115200,keep",
    "[    0.017401] RAMDISK: [mem 0x1fe3f000-0x1ff3cfff]",
    "[    0.018301] ACPI: Early table checksum verification disabled",
    "[    0.298659] Console: colour *CGA 80x25",
]
AFTER = ["[    0.412345] printk: console [ttyS0] enabled", "[    1.500000] Run /init"]


def other_times(lines: list[str]) -> list[str]:
    """The same lines as another boot would print them."""
    return [re.sub(r"(\[ +\d\.\d{5})(?!0\])\d", r"\g<1>7", line, count=1) for line in lines]


def test_a_log_that_is_printed_again_on_a_console_that_comes_up_late_is_no_reset() -> None:
    lines = [SEABIOS, *BOOT, *BOOT, *AFTER, "linux login: "]
    for size in (1, 1 << 20):
        assert [type(event) for event in scan(encode(lines), size)] == [Opened]
    # The clock of some machines stands still until the timers run.
    still = [re.sub(r"\d\.\d{6}", "0.000000", line) for line in BOOT]
    assert reports(encode([*still, *still, *AFTER, "[    1.600000] a", "[    1.700000] b"])) == []
    # Nor where every line comes twice from then on, or from the start.
    doubled = [line for line in AFTER for _ in range(2)]
    assert reports(encode([*BOOT, *BOOT, *doubled])) == []
    assert reports(encode([line for line in [*BOOT, *AFTER] for _ in range(2)])) == []
    # A kernel that is reset after it has printed its log twice is reset once.
    again = other_times(BOOT)
    found = reports(encode([*BOOT, *BOOT, *AFTER, *again]))
    assert [(each.kind, each.start_line) for each in found] == [("unexpected-reset", 13)]


def test_a_second_boot_has_times_of_its_own() -> None:
    found = reports(encode([*BOOT, *other_times(BOOT), *AFTER]))
    assert [(each.kind, each.start_line) for each in found] == [("unexpected-reset", 6)]


@pytest.mark.parametrize(
    "words",
    [
        "SeaBIOS (version",
        SEABIOS,
        "BdsDxe: loading Boot0001 ",
        "U-Boot 2023.07 (Jul 11 2023 - 15:20:44)",
        "ver=U-Boot 2020.01 (Apr 20 2020 - 23:29:25 +0000)",
        "coreboot-4.20 Mon Sep 12 14:38:59 UTC 2022 smm starting (log level: 8)...",
    ],
)
@pytest.mark.parametrize("next_line", ["linux login: ", "/ # ls", "[    4.000000] usb 1-6: done"])
def test_a_programs_words_about_firmware_are_no_reset(words: str, next_line: str) -> None:
    lines = [SEABIOS, *BOOT, *AFTER, words, "and more of them", next_line]
    assert reports(encode(lines)) == []
    # A reset that comes later is seen all the same.
    found = reports(encode([*lines, SEABIOS, "iPXE (http://ipxe.org) 00:01.0 C000 PCI2.10"]))
    assert [(each.kind, each.start_line) for each in found] == [
        ("unexpected-reset", len(lines) + 1)
    ]


def test_a_reset_is_reported_when_the_firmware_goes_on() -> None:
    scanner = Scanner()
    events = scanner.feed(encode([SEABIOS, *BOOT, *AFTER, SEABIOS, ""]))
    assert [type(event) for event in events] == [Opened]
    assert scanner.quiet() == []
    events = scanner.feed(encode(["iPXE initialising devices...ok"]))
    (report,) = [event for event in events if isinstance(event, CrashReport)]
    assert (report.kind, report.start_line) == ("unexpected-reset", 9)


def test_a_machine_that_is_started_within_the_machine_does_not_reset_it() -> None:
    banner = "[    0.000000] Linux version 6.1.0 (a@b) (gcc) #1 SMP"
    boot = ["SeaBIOS (version 1.16)", "Booting from ROM..", banner, "[    1.000000] Run /init"]
    command = "qemu-system-x86_64 -nographic -kernel bzImage"
    within = [f"# {command}", *boot, "[   90.000000] outer: eth0 is up"]
    assert reports(encode([*boot, *within])) == []
    # What has started the machine itself says nothing of its resets.
    (report,) = reports(encode([command, *boot, "[   90.000000] eth0 is up", *boot]))
    assert (report.kind, report.start_line) == ("unexpected-reset", 7)


def test_the_log_in_proc_kmsg_is_no_reset() -> None:
    quoted = [f"<5>{line}" for line in BOOT]
    assert reports(encode([*BOOT, *AFTER, *quoted])) == []


def test_firmware_that_begins_again_after_its_handoff_is_a_reset() -> None:
    uboot = ["U-Boot 2023.10 (Jan 01 2024 - 00:00:00 +0000)", "Starting kernel ...", ""]
    loading = 'BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x3,0x0)'
    stub = [loading, "EFI stub: Booting Linux Kernel...", "EFI stub: Exiting boot services..."]
    for boot in (uboot, stub):
        found = reports(encode([*boot, *boot]))
        assert [(each.kind, each.start_line) for each in found] == [("unexpected-reset", 4)]
        assert reports(encode([*boot, *BOOT, *AFTER])) == []


UNPACKS = ["Decompressing Linux... Parsing ELF... done.", "Booting the kernel."]


def test_a_kernel_that_unpacks_itself_while_another_runs_is_a_reset() -> None:
    again = other_times(BOOT)
    found = reports(encode([*UNPACKS, *BOOT, *AFTER, *UNPACKS, *again, *AFTER]))
    assert [(each.kind, each.start_line) for each in found] == [("unexpected-reset", 10)]
    # It is the first line of the reset only where no firmware speaks.
    found = reports(encode([SEABIOS, *UNPACKS, *BOOT, *AFTER, SEABIOS, *UNPACKS, *again, *AFTER]))
    assert [(each.kind, each.start_line) for each in found] == [("unexpected-reset", 11)]


def test_a_kernel_that_unpacks_itself_after_the_loader_is_none() -> None:
    uboot = ["U-Boot 2023.10 (Jan 01 2024 - 00:00:00 +0000)", "Starting kernel ...", ""]
    unpacks = "Uncompressing Linux... done, booting the kernel."
    for loader in ([SEABIOS], uboot, uboot[1:], []):
        assert reports(encode([*loader, unpacks, *BOOT, *AFTER, "linux login: "])) == []
    for goodbye in ("reboot: Restarting system", "kexec_core: Starting new kernel"):
        lines = [*BOOT, *AFTER, f"[    9.000000] {goodbye}", *UNPACKS, *other_times(BOOT)]
        assert reports(encode(lines)) == []
    # Nor are the same words of a program.
    assert reports(encode([*BOOT, *AFTER, *UNPACKS, "[    4.000000] usb 1-6: done"])) == []


def test_a_reset_completes_the_report_it_cut() -> None:
    lines = [f"[    5.000000] {line}" for line in BY_NAME["null-x86-6.1"].lines[:9]]
    found = reports(encode([LINUX, *lines, SEABIOS, LINUX]))
    assert [report.kind for report in found] == [CrashKind.NULL_DEREFERENCE]
    assert found[0].truncated


def test_the_kernels_log_on_demand_is_no_reset() -> None:
    assert scan(encode([LINUX, "# dmesg", LINUX])) == []


def test_a_line_of_ten_megabytes_costs_neither_memory_nor_the_next_report() -> None:
    scanner = Scanner()
    events: list[Event] = []
    for _ in range(160):
        events += scanner.feed(b"x" * 65536)
    events += scanner.feed(b"\n" + encode(disguise(BY_NAME["divide"], "time"))) + scanner.close()
    report = next(event for event in events if isinstance(event, CrashReport))
    assert (report.title, report.start_line) == ("divide error in rate_to_div", 4)
    assert report.start_offset > 160 * 65536


@pytest.mark.parametrize("size", [1000, 65536, 1 << 24])
def test_a_crash_at_the_end_of_a_long_line_is_found(size: int) -> None:
    data = b"y" * 100_000 + b"[    1.000000] Kernel panic - not syncing: late\r\n"
    found = [e for e in scan(data, size) if isinstance(e, CrashReport)]
    assert [(report.title, report.start_line) for report in found] == [("panic: late", 1)]


def test_a_report_nobody_writes_to_any_more_is_completed() -> None:
    lines = [f"[    1.000000][   T5] {line}" for line in BY_NAME["circular"].lines]
    calm = [f"[    2.{n:06}][   T6] eth0: link is up" for n in range(500)]
    scanner = Scanner()
    events = scanner.feed(encode([*lines, *calm]))
    assert [type(event) for event in events] == [Opened, CrashReport]


def test_reports_of_first_lines_only_do_not_pile_up() -> None:
    scanner = Scanner()
    first = "BUG: kernel NULL pointer dereference, address: 0000000000000008"
    events = scanner.feed(encode([f"[    1.{n:06}][ T{n}] {first}" for n in range(3000)]))
    opened = [event for event in events if isinstance(event, Opened)]
    assert len(opened) == 3000
    # Only the last ones may still go on.
    assert len(events) - len(opened) > 2000


def test_other_cpus_backtraces_belong_to_the_stall() -> None:
    lines = [
        "[   60.000000][    C0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "[   60.000000][    C0] rcu: \t1-...!: (1 GPs behind) idle=9/1/0x4 softirq=5/6 fqs=1",
        "[   60.000000][    C0] Sending NMI from CPU 0 to CPUs 1:",
        "[   60.000100][    C1] NMI backtrace for cpu 1",
        "[   60.000100][    C1] CPU: 1 PID: 50 Comm: busy Not tainted 6.1.0 #1",
        "[   60.000100][    C1] RIP: 0010:busy_loop+0x1/0x10",
        "[   60.000100][    C1] Call Trace:",
        "[   60.000100][    C1]  busy_ioctl+0x20/0x40",
    ]
    report = reports(encode(lines))[0]
    assert (report.function, report.end_line) == ("busy_loop", 8)


def test_the_same_bug_has_the_same_title_whatever_its_numbers() -> None:
    one = "[    1.000000] Kernel panic - not syncing: bad frame 0xffff888100001234 on CPU 1"
    two = "[   99.000000] Kernel panic - not syncing: bad frame 0xffff88810abc0000 on CPU 3"
    assert reports(encode([one]))[0].title == reports(encode([two]))[0].title


def test_frames_tell_offset_size_module_and_reliability() -> None:
    frames = reports(encode(BY_NAME["null-x86-6.1"].lines))[0].frames
    first = frames[0]
    assert (first.function, first.offset, first.size, first.module) == (
        "frob_release",
        0x2A,
        0x70,
        "frob",
    )
    assert [frame.reliable for frame in frames[1:3]] == [False, False]
    old = reports(encode(BY_NAME["null-x86-4.9"].lines))[0].frames[0]
    assert old.address == 0xFFFFFFFF8142A5D3


def test_a_log_with_every_line_twice_holds_one_report() -> None:
    golden = next(g for g in GOLDEN if g.name == "bad-page")
    stamped = [f"Nov  3 15:20:05 box kernel: {line}" for line in golden.lines]
    doubled = [line for line in stamped for _ in range(2)]
    assert [report.title for report in reports(encode(doubled))] == [golden.title]


def test_a_reset_is_one_although_the_log_begins_while_the_kernel_runs() -> None:
    before = "[  500.720639] kvm: exiting hardware virtualization"
    loader = [SEABIOS, "Booting from Hard Disk 0...", "early console in extract_kernel"]
    found = reports(encode([before, *loader, *BOOT, *AFTER]))
    assert [(each.kind, each.start_line) for each in found] == [("unexpected-reset", 2)]
    goodbye = "[  500.800000] reboot: Restarting system"
    assert reports(encode([before, goodbye, *loader, *BOOT, *AFTER])) == []
    assert reports(encode([*loader, *BOOT, *AFTER])) == []


def test_a_long_dump_of_memory_is_the_reports_own() -> None:
    head = "BUG: KASAN: slab-out-of-bounds in tdev_open+0x1/0x20\nCall Trace:\n"
    dump = "".join(f"{at:04x}: {'0123456789abcdef ' * 2}\n" for at in range(0, 0x400, 0x10))
    (report,) = reports((head + dump + " tdev_read+0x1/0x20\n").encode())
    assert report.text.endswith("tdev_read+0x1/0x20")


def test_another_cpus_backtrace_without_a_stamp_ends_no_other_report() -> None:
    log = """\
[    1.000001] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    1.000002][    C0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:7]
NMI backtrace for cpu 1
[    1.000003] CPU: 1 PID: 7 Comm: sh
[    1.000004] RIP: 0010:tdev_open+0x1/0x20
[    1.000005] Call Trace:
[    1.000006]  tdev_read+0x1/0x20
"""
    titles = {report.title for report in reports(log.encode())}
    assert "NULL pointer dereference in tdev_open" in titles
