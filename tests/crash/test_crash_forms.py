"""First lines and forms of reports that differ from the usual ones."""

from __future__ import annotations

import pytest

from kboot.crash import COMPLAINTS, CrashReport
from tests.crash.crash_logs import encode, reports, scan

X86_TRACE = """\
CPU: 2 PID: 77 Comm: mixerd Not tainted 6.1.0 #1
RIP: 0010:mixer_scale+0x29/0x60 [mixer]
Code: 0f 1f 44 00 00 <0f> 5e c1
RSP: 0018:ffffc900001f7e18 EFLAGS: 00010246
Call Trace:
 <TASK>
 mixer_ioctl+0x12/0x40 [mixer]
 __x64_sys_ioctl+0x91/0xd0
 do_syscall_64+0x55/0x80
 </TASK>
---[ end trace 0000000000000000 ]---
""".splitlines()
FATAL = [
    "Kernel panic - not syncing: Fatal exception",
    "---[ end Kernel panic - not syncing: Fatal exception ]---",
]


def stamped(lines: list[str], caller: str = "") -> list[str]:
    return [f"[   10.{number:03}000]{caller} {line}" for number, line in enumerate(lines)]


def only(lines: list[str]) -> CrashReport:
    (report,) = reports(encode(lines))
    return report


@pytest.mark.parametrize(
    ("header", "title"),
    [
        ("simd exception: 0000 [#1] PREEMPT SMP NOPTI", "oops in mixer_scale"),
        ("divide_error: 0000 [#1] SMP PTI", "divide error in mixer_scale"),
        ("fixpoint divide exception: 0009 ilc:2 [#1]SMP", "divide error in mixer_scale"),
        ("vector exception: 001b ilc:3 [#3] SMP", "oops in mixer_scale"),
        ("something invoked from kernel context![#1]:", "oops in mixer_scale"),
        ("Kernel does odd things [#12] PREEMPT", "oops in mixer_scale"),
    ],
)
def test_any_header_of_die_with_a_trace_behind_it_is_an_oops(header: str, title: str) -> None:
    for lines in ([header, *X86_TRACE], stamped([header, *X86_TRACE])):
        report = only(lines)
        assert (report.title, report.start_line) == (title, 1)


def test_a_number_in_brackets_alone_is_no_oops() -> None:
    talk = ["see pull request [#12]: SMP boot", *["make: nothing to be done"] * 20]
    assert reports(encode(talk)) == []
    assert reports(encode(stamped(talk))) == []


def test_a_header_of_die_behind_a_complete_oops_begins_another() -> None:
    lines = ["odd exception: 0000 [#1] SMP", *X86_TRACE, "odd exception: 0000 [#2] SMP", *X86_TRACE]
    assert [report.start_line for report in reports(encode(stamped(lines)))] == [1, 13]


@pytest.mark.parametrize("glue", ["Star[ 1.7t 9ing8]", "[ d  1t.o7 9o8p6e56][    T1] "])
def test_a_report_goes_on_although_its_first_lines_time_is_garbled(glue: str) -> None:
    lines = stamped(["Run /init as init process", "x", *X86_TRACE], "[    T1]")
    lines[1] = f"{glue}divide error: 0000 [#1] SMP"
    report = only(lines)
    assert (report.function, report.start_line) == ("mixer_scale", 2)
    assert report.end_line == len(lines)


def test_a_fault_whose_first_line_is_garbled_keeps_its_kind() -> None:
    fault = "BUG: unable to handle page fault for address: ffffc9000034bff8"
    rest = ["#PF: supervisor write access in kernel mode", "Oops: 0002 [#1] SMP", *X86_TRACE]
    for more in (rest, rest[1:]):
        lines = stamped(["Run /init", fault, *more], "[    T1]")
        lines[1] = f"[ S  1tar.t0i0n1]g {fault}"
        report = only(lines)
        assert (report.title, report.start_line) == ("page fault in mixer_scale", 2)


def test_a_first_line_that_another_message_cuts_short_counts() -> None:
    lines = stamped(["x", "paging request at ffff888000001234", "Oops: 0002 [#1] SMP", *X86_TRACE])
    lines[0] = "[    9.000000] BUG: unable to handle kernel [    9.000001] eth0: link is up"
    report = only(lines)
    assert (report.title, report.start_line) == ("page fault in mixer_scale", 1)


ARM_FAULT = [
    "Alignment trap: not handling instruction f46107cf at [<004e5c4c>]",
    "Unhandled fault: alignment exception (0x011) at 0x00508ae4",
    "pgd = ec340000",
]


def test_an_unhandled_fault_is_an_oops_only_where_the_kernel_dies_of_it() -> None:
    program = ["CPU: 0 PID: 10 Comm: mixerd Not tainted 4.14.0 #1", "PC is at 0x10514"]
    assert reports(encode(stamped([*ARM_FAULT, *program, *["audit: done"] * 20]))) == []
    death = ["Internal error: : 11 [#1] SMP ARM", program[0], "PC is at mixer_read+0x58/0x9c"]
    report = only(stamped([*ARM_FAULT, *death, "---[ end trace 78180528c62bb300 ]---"]))
    assert (report.title, report.start_line) == ("unhandled fault in mixer_read", 1)
    report = only(stamped([*ARM_FAULT[1:], *death, "---[ end trace 78180528c62bb300 ]---"]))
    assert (report.title, report.start_line) == ("unhandled fault in mixer_read", 1)


def test_a_long_dump_of_the_stack_does_not_end_a_report() -> None:
    for dump in ("{:04x}: c0343cdc c0343cdc c0343cdc", "{:04x}  c0343cdc c0343cdc c0343cdc"):
        lines = [
            "Unable to handle kernel NULL pointer dereference at virtual address 00000000",
            "Internal error: Oops: 5 [#1] SMP ARM",
            "CPU: 0 PID: 132 Comm: udevd Not tainted 5.15.13 #1510",
            "PC is at mixer_path+0x30/0x90",
            *[f"Register r{number} information: non-slab/vmalloc memory" for number in range(30)],
            "Stack: (0xc3ae59f8 to 0xc3ae6000)",
            *[dump.format(0xA5E0 + 32 * number) for number in range(60)],
            "[<c052ac60>] (mixer_path) from [<c0343cdc>] (mixer_set+0x20/0x40)",
            "---[ end trace 78180528c62bb300 ]---",
        ]
        report = only(stamped(lines))
        assert (report.function, report.end_line) == ("mixer_path", len(lines))


def test_a_warning_without_function_has_its_files_kind_and_the_stack_behind_its_end() -> None:
    lines = [
        "WARNING: at /home/someone/linux/lib/list_debug.c:33",
        "Modules linked in:",
        "CPU: 0 PID: 730 Comm: kworker/u16:7 Not tainted 4.4.184 #1",
        "PC is at __list_add+0xc4/0xec",
        "---[ end trace e04bbdfd13922de9 ]---",
        "Call trace:",
        "[<ffffff822cc9a478>] __list_add+0xc4/0xec",
        "[<ffffff822cd0a478>] mixer_queue+0x44/0x60",
    ]
    report = only(stamped(lines))
    assert (report.kind, report.title) == ("data-corruption", "list corruption in mixer_queue")
    assert report.end_line == len(lines)


def test_a_log_of_two_consoles_on_one_line_holds_each_report_once() -> None:
    oops = ["BUG: unable to handle page fault for address: ffffc9000034bff8", "Oops: 0002 [#1] SMP"]
    lines = [line for line in stamped([*oops, *X86_TRACE, *FATAL]) for _ in range(2)]
    fault, panic = reports(encode(lines))
    assert (fault.title, fault.start_line, fault.fatal) == ("page fault in mixer_scale", 1, True)
    assert (panic.kind, panic.caused_by) == ("panic", fault)
    assert fault.text.count("mixer_ioctl") == 1


def test_lines_without_time_that_come_twice_are_read_once() -> None:
    oops = ["BUG: unable to handle page fault for address: ffffc9000034bff8", "Oops: 0002 [#1] SMP"]
    report = only([line for line in [*oops, *X86_TRACE] for _ in range(2)])
    assert (report.title, report.start_line) == ("page fault in mixer_scale", 1)
    assert report.text.count("mixer_ioctl") == 1


def test_a_report_waits_for_its_stack_through_many_lines_of_others() -> None:
    first = "BUG: unable to handle page fault for address: 0000000000200286"
    others = [f"gpio gpiochip1: created range {number}" for number in range(90)]
    lines = stamped([first, *others, "Oops: 0000 [#1] PREEMPT SMP", *X86_TRACE])
    report = only(lines)
    assert (report.title, report.end_line) == ("page fault in mixer_scale", len(lines))
    late = stamped(["kernel BUG at fs/mixer.c:12!", *others, "invalid opcode: 0000 [#1] SMP"])
    assert only([*late, *stamped(X86_TRACE)]).title == "kernel BUG in mixer_scale"


def test_an_oops_is_fatal_if_its_panic_follows_and_lasts_to_its_end() -> None:
    again = [
        "RIP: 0010:mixer_scale+0x29/0x60 [mixer]",
        "RSP: 0018:ffffc900001f7e18 EFLAGS: 00010246",
    ]
    lines = stamped(["divide error: 0000 [#1] SMP", *X86_TRACE, *again, *FATAL])
    oops, panic = reports(encode(lines))
    assert (oops.fatal, oops.end_line) == (True, len(lines))
    assert (panic.title, panic.caused_by) == ("panic: Fatal exception", oops)


def test_an_oops_without_panic_ends_at_its_marker() -> None:
    lines = stamped(["divide error: 0000 [#1] SMP", *X86_TRACE, *[" eth0: link is up"] * 60])
    report = only(lines)
    assert (report.fatal, report.truncated, report.end_line) == (False, False, 12)


@pytest.mark.parametrize(
    "prefix",
    [
        "10.1.1.2: kern: {level:>7}: [2024-01-25T10:25:{number:02}.785891566Z]: ",
        "2024-01-15T10:00:{number:02}+01:00 host7 kern {level} kernel: ",
        "host7 kernel/{level} lab> ",
    ],
)
def test_a_prefix_with_a_level_is_learnt_whatever_the_level(prefix: str) -> None:
    levels = ["alert", "warning", "info", "err"]
    lines = [
        prefix.format(level=levels[number % 4], number=number) + line
        for number, line in enumerate(["divide error: 0000 [#1] SMP", *X86_TRACE])
    ]
    report = only(lines)
    assert (report.function, report.pid) == ("mixer_scale", 77)


@pytest.mark.parametrize(
    ("message", "site", "title"),
    [
        ("CFI failure (target: a_show.cfi_jt+0x0/0x8):", "kernel/cfi.c:29", "CFI failure in"),
        ("VFS: Busy inodes after unmount of sda1 (ext4)", "fs/super.c:650", "busy inodes in"),
    ],
)
def test_a_warning_and_its_message_are_one_report(message: str, site: str, title: str) -> None:
    where = f"WARNING: CPU: 2 PID: 77 at {site} mixer_check+0x33/0x40"
    report = only(stamped([message, where, "Modules linked in: mixer", *X86_TRACE]))
    assert report.start_line == 1
    assert report.kind == "bug"
    assert report.title.startswith(title)


def test_a_warning_without_a_file_belongs_to_its_message_too() -> None:
    message = "CFI failure at mixer_scale+0x29/0x60 (target: a_show+0x0/0x8; expected type: 0x1)"
    where = "WARNING: CPU: 2 PID: 77 at mixer_scale+0x29/0x60"
    report = only(stamped([message, where, "Modules linked in: mixer", *X86_TRACE]))
    assert (report.title, report.start_line) == ("CFI failure in mixer_scale", 1)


@pytest.mark.parametrize(
    "words", ["array index out of bounds", "shift out of bounds", "integer addition overflow"]
)
def test_the_whole_of_what_a_trap_reports_is_in_the_title(words: str) -> None:
    header = f"Internal error: UBSAN: {words}: 00000000f2005512 [#1] SMP"
    assert only(stamped([header, *X86_TRACE])).title == f"UBSAN: {words} in mixer_scale"
    at = [f"UBSAN: {words} at mixer_scale+0x29/0x60", "Oops: invalid opcode: 0000 [#1] SMP"]
    assert only(stamped([*at, *X86_TRACE])).title == f"UBSAN: {words} in mixer_scale"


def test_an_exception_that_arm64_does_not_handle_is_an_oops_and_leads_to_a_panic() -> None:
    lines = [
        "Unhandled 64-bit el1h sync exception on CPU0, ESR 0x0000000002000000 -- Unknown",
        "CPU: 0 PID: 77 Comm: mixerd Not tainted 6.1.0 #1",
        "pc : mixer_kick+0x114/0x458",
        "Kernel panic - not syncing: Unhandled exception",
        "Call trace:",
        " panic+0x314/0x35c",
        " mixer_kick+0x114/0x458",
        "---[ end Kernel panic - not syncing: Unhandled exception ]---",
    ]
    oops, panic = reports(encode(stamped(lines)))
    assert oops.title == "unhandled sync exception in mixer_kick"
    assert (oops.fatal, panic.start_line) == (True, 4)


def test_the_name_of_a_hung_task_may_have_a_line_feed() -> None:
    lines = [
        "INFO: task \x01\x02",
        "\x03 x:18088 blocked for more than 143 seconds.",
        "      Not tainted 6.1.0 #1",
        "Call Trace:",
        " <TASK>",
        " __schedule+0x10e9/0x6820",
        " schedule+0xdd/0x390",
        " mixer_close+0x20/0x40",
    ]
    report = only(stamped(lines, "[   T41]"))
    assert (report.kind, report.start_line) == ("hung-task", 1)


def test_a_slab_report_whose_first_lines_were_dropped_is_found() -> None:
    lines = stamped(["INFO: Allocated in mixer_open+0x29/0x90 age=1 cpu=1 pid=60", *X86_TRACE[4:]])
    report = only([f"** 44 printk messages dropped ** {line}" for line in lines])
    assert (report.kind, report.function) == ("slab-corruption", "mixer_open")


@pytest.mark.parametrize("seconds", [1844417562, 18444175627])
def test_a_clock_that_runs_wild_is_a_time_too(seconds: int) -> None:
    lines = [f"[{seconds}.{n:06}] {line}" for n, line in enumerate(X86_TRACE)]
    first = f"[{seconds}.000000] segment-related general protection fault: 206c [#2] PTI"
    report = only([first, *lines])
    assert report.title == "general protection fault in mixer_scale"
    assert report.text.startswith("segment-related")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("size", [1, 3, 64, 1 << 20])
def test_a_log_in_utf_16_is_read(encoding: str, size: int) -> None:
    text = "\ufeff" + "\r\n".join(stamped(["divide error: 0000 [#1] SMP", *X86_TRACE, "é"]))
    events = scan(text.encode(encoding), size)
    (report,) = [event for event in events if isinstance(event, CrashReport)]
    assert (report.title, report.start_line) == ("divide error in mixer_scale", 1)


@pytest.mark.parametrize("noise", [b"\xff", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\xfd\x00\n"])
def test_noise_like_a_byte_order_mark_makes_no_other_log_unreadable(noise: bytes) -> None:
    log = noise + b"\n" + encode(stamped(["divide error: 0000 [#1] SMP", *X86_TRACE]))
    assert [report.title for report in reports(log)] == ["divide error in mixer_scale"]


def test_a_first_line_at_which_the_log_is_cut_off_is_believed() -> None:
    first = "[    3.000000] Unhandled fault: alignment exception (0x011) at 0x00508ae4\n"
    (report,) = reports(first.encode() + b"[    3.000001] pgd = ec3")
    assert (report.kind, report.truncated) == ("oops", True)
    assert reports(first.encode() + b"[    3.000001] pgd = ec340000\n") == []
    lock = (
        b"[    3.000000] smp: csd: Detected non-responsive CSD lock (#1) on CPU#0, waiting 5000\n"
    )
    (report,) = reports(lock + b"[    3.000001] smp: \tcsd: CSD lock (#1) han")
    assert (report.kind, report.truncated) == ("hard-lockup", False)


COMPLAINTS_OF_OTHERS = {
    "mixerd: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL), nodemask=(null)": (
        "page allocation failure"
    ),
    'irq 17: nobody cared (try booting with the "irqpoll" option)': (
        "interrupt that nobody handles"
    ),
    "unchecked MSR access error: RDMSR from 0x1b0 at rIP: 0xffffffff8106 (mixer_read+0x1/0x9)": (
        "unchecked RDMSR"
    ),
    "WARNING: CPU: 0 PID: 0 at net/sched/sch_generic.c:525 dev_watchdog+0x1f9/0x200": (
        "transmit queue timed out"
    ),
    "WARNING: net/sched/sch_generic.c:525 at dev_watchdog+0x1f9/0x200, CPU#0: swapper/0/0": (
        "transmit queue timed out"
    ),
}


@pytest.mark.parametrize("first", COMPLAINTS_OF_OTHERS)
def test_what_the_kernel_says_of_hardware_and_memory_is_a_complaint(first: str) -> None:
    report = only(stamped([first, *X86_TRACE]))
    assert report.kind in COMPLAINTS
    assert report.title.startswith(COMPLAINTS_OF_OTHERS[first])
    assert not report.fatal


@pytest.mark.parametrize(
    "words",
    [
        "mce: [Hardware Error]: Machine check events logged",
        "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0",
        "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 0",
        "pcieport 0000:00:1c.0: AER: Corrected error received: 0000:00:1c.0",
        "Uhhuh. NMI received for unknown reason 3d on CPU 0.",
        "Out of memory: Killed process 77 (mixerd) total-vm:1024kB, anon-rss:12kB",
    ],
)
def test_errors_that_were_corrected_are_not_reported(words: str) -> None:
    assert reports(encode(stamped([words, *["eth0: link is up"] * 20]))) == []


ARM_TRACE = [
    "CPU: 0 PID: 77 Comm: mixerd Not tainted 5.10.0 #1",
    "Hardware name: Board (Device Tree)",
    "[<c010f1a4>] (dump_backtrace) from [<c010f3f8>] (show_stack+0x18/0x1c)",
    "[<c0343cdc>] (mixer_scale) from [<c0343e00>] (mixer_ioctl+0x30/0x90)",
]


@pytest.mark.parametrize(
    ("first", "kind", "title"),
    [
        ("Division by zero in kernel.", "divide-error", "division by zero in "),
        ("Kernel BUG at mixer_scale+0x29/0x60 [verbose debug info unavailable]", "bug", "kernel "),
        ("sysfs: cannot create duplicate filename '/class/mixer/m0'", "warning", "duplicate name"),
        ("WARNING: at mm/mixer.c:12 mixer_scale()", "warning", "WARNING in mixer_scale"),
        ("invalid_op: 0000 [#1] SMP PTI", "invalid-opcode", "invalid opcode in "),
        ("Kernel stack overflow.", "stack-overflow", "stack overflow"),
    ],
)
def test_a_first_line_that_few_kernels_have_begins_a_report(
    first: str, kind: str, title: str
) -> None:
    report = only(stamped([first, *ARM_TRACE]))
    assert (report.kind, report.start_line, report.end_line) == (kind, 1, 5)
    assert report.title.startswith(title)


def test_an_abort_on_the_way_to_an_instruction_is_an_oops_if_the_kernel_dies_of_it() -> None:
    first = "Unhandled prefetch abort: breakpoint debug exception (0x002) at 0x00000000"
    assert reports(encode(stamped([first, *["eth0: link is up"] * 20]))) == []
    report = only(stamped([first, "Internal error: : 2 [#1] PREEMPT SMP ARM", *ARM_TRACE]))
    assert (report.kind, report.start_line) == ("oops", 1)


def test_lines_whose_end_was_lost_belong_to_the_report_all_the_same() -> None:
    lines = stamped(
        [
            "BUG: unable to handle page fault for address: ffffc90000def000",
            "Oops: 0002 [#1] PREEMPT SMP",
            "CPU: 1 PID: 77 Comm: tester Not tainted 6.1.0 #1",
            "RIP: 0010:memcpy+0x1c/0x240",
            "Call Trace:",
            " tdev_copy+0x1c/0x240",
            " tdev_ioctl+0x1c/0x240",
            "---[ end trace 0000000000000000 ]---",
            "eth0: link is up",
        ]
    )
    for first in range(len(lines) - 2):
        joined = [*lines[:first], "".join(lines[first : first + 3]), *lines[first + 3 :]]
        report = only(joined)
        assert (report.title, report.pid) == ("page fault in tdev_copy", 77)
        assert [frame.function for frame in report.frames] == ["memcpy", "tdev_copy", "tdev_ioctl"]


@pytest.mark.parametrize(
    ("first", "title"),
    [
        ('irq 16: nobody cared (try booting with the "irqpoll" option)', "that nobody handles"),
        ("Kernel stack overflow.", "stack overflow"),
        ("smp: csd: Detected non-responsive CSD lock (#1) on CPU#0", "that does not answer"),
        ("Alignment trap: not handling instruction e1932f9f at [<80123456>]", "unhandled fault"),
    ],
)
def test_a_first_line_that_needs_a_trace_is_found_behind_words_that_nobody_knows(
    first: str, title: str
) -> None:
    die = ["Internal error: : 1 [#1] SMP ARM"] * first.startswith("Alignment")
    lines = ["usb 1-1: found", first, *die, *X86_TRACE, *["eth0: link is up"] * 30]
    prefixed = [f"23-11-02 03:04:{at:02} R SERIAL> {line}" for at, line in enumerate(lines)]
    report = only(prefixed)
    assert (report.start_line, report.pid) == (2, 77)
    assert report.title.partition(" in mixer_")[0].endswith(title)
    without_trace = [*prefixed[:2], *prefixed[-30:]]
    assert reports(encode(without_trace)) == []


@pytest.mark.parametrize(
    "prefix", ["", "2026-11-23T02:00:01.009Z ", "Nov 23 02:00:01 box kernel: "]
)
def test_a_first_line_that_another_message_has_cut_is_one(prefix: str) -> None:
    torn = "[   10.000000] BUG: unable to handle kernel [   10.000100] tdev: hello!"
    rest = stamped(["paging request at ffff8800b3d5ed58", "Oops: 0011 [#1] SMP", *X86_TRACE])
    report = only([prefix + line for line in [torn, *rest]])
    assert (report.title, report.start_line) == ("page fault in mixer_scale", 1)


@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_what_a_program_says_in_or_before_a_report_takes_nothing_from_it(at: int) -> None:
    lines = stamped(
        ["kernel BUG at drivers/mixer.c:12!", "invalid opcode: 0000 [#1] SMP", *X86_TRACE]
    )
    lines.insert(at, "WARNING: the interface of this program is not stable.")
    report = only(lines)
    assert (report.title, report.start_line) == ("kernel BUG in mixer_scale", 1 + (at == 0))


def test_a_panic_is_not_the_end_of_what_a_program_said_before_it() -> None:
    panic = [
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
        *X86_TRACE[5:],
    ]
    report = only(["WARNING: init is not well", *stamped([*panic, FATAL[1]])])
    assert (report.kind, report.start_line) == ("init-killed", 2)


@pytest.mark.parametrize("caller", ["", "[   T77]"])
@pytest.mark.parametrize("mark", ["[   76.471107] ", ""])
def test_a_first_line_behind_a_prompt_tells_nothing_of_the_marks_of_the_others(
    caller: str, mark: str
) -> None:
    first = "root@box:~# ./mix[   76.471000] BUG: unable to handle kernel paging request at f8"
    rest = ["IP: [<ffffffff824164eb>] mixer_scale+0x29/0x60", "Oops: 0000 [#1] SMP", *X86_TRACE]
    if not mark and caller:
        caller = ""
    report = only([first, *(f"{mark}{caller}{' ' * bool(caller)}{line}" for line in rest)])
    assert (report.title, report.start_line) == ("page fault in mixer_scale", 1)
    assert report.end_line == 1 + len(rest)


def test_a_programs_line_in_the_stack_of_an_interrupt_hides_nothing_of_it() -> None:
    lines = stamped(
        [
            "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
            "mixerd/77 [HC0[0]:SC0[0]:HE0:SE1] is trying to acquire:",
            " (&mixer->lock){+.+.}, at: [<ffffffff8174eed4>] mixer_open+0x24/0x250",
            "... which became HARDIRQ-irq-safe at:",
            "  lock_acquire+0x170/0x3f0",
            "  _raw_spin_lock_irqsave+0x8c/0xbf",
            "  mixer_interrupt+0x199/0xc20",
            "to a HARDIRQ-irq-unsafe lock:",
            " (&mixer->lock){+.+.}",
        ]
    )
    lines.insert(6, "         Starting Network Time Synchronization...")
    assert only(lines).title == "possible deadlock in mixer_interrupt"


def test_an_arm_bug_that_wrote_to_address_0_is_one_report() -> None:
    lines = [
        "kernel BUG at drivers/misc/mixer.c:12!",
        "Unable to handle kernel NULL pointer dereference at virtual address 00000000",
        "pgd = c0004000",
        "Internal error: Oops: 805 [#1] PREEMPT SMP",
        "CPU: 0    Not tainted  (2.6.35 #1)",
        "PC is at __bug+0x1c/0x28",
        "LR is at __bug+0x18/0x28",
        "Backtrace: ",
        "[<c0023456>] (__bug+0x0/0x28) from [<c0123466>] (mixer_read+0x12/0x90)",
        "[<c0123456>] (mixer_read+0x0/0x90) from [<c0123466>] (mixer_ioctl+0x12/0x90)",
    ]
    assert only(stamped(lines)).title == "kernel BUG in mixer_read"
    other = stamped([*lines[1:6], *["audit: done"] * 30])
    assert [each.kind for each in reports(encode([*stamped(lines), *other]))][1:] == [
        "null-dereference"
    ]


def test_registers_with_their_function_in_brackets_are_read() -> None:
    lines = [
        "Unable to handle kernel paging request at virtual address 0x00000018, pc: 0x80201234",
        "Oops: 00000000",
        "CPU: 0 PID: 10 Comm: mixerd Not tainted 5.10.0 #1",
        "PC: 0x80201234 (memcpy+0x1c/0x240)",
        "LR: 0x80201244 (mixer_read+0x1c/0x240)",
    ]
    assert only(stamped(lines)).title == "page fault in mixer_read"


def test_the_fault_that_the_kernel_dies_of_is_the_last_one_and_not_a_programs() -> None:
    programs = ["Unhandled fault: imprecise external abort (0xc06) at 0x00071bcc", "pgd = 92e2c000"]
    kernels = [
        "Unhandled fault: imprecise external abort (0xc06) at 0x76ef7e54",
        "pgd = 80004000",
        "Internal error: : c06 [#1] SMP ARM",
        "CPU: 0 PID: 769 Comm: kworker/u2:2 Tainted: G           O    4.9.144 #2",
        "PC is at mixer_read+0x160/0x3d8",
    ]
    for lines in ([*programs, *programs, *kernels], stamped([*programs, *programs, *kernels])):
        report = only(lines)
        assert (report.title, report.start_line) == ("unhandled fault in mixer_read", 5)


def test_an_indented_report_has_its_interrupts_handler() -> None:
    lines = [
        'irq 17: nobody cared (try booting with the "irqpoll" option)',
        "CPU: 0 PID: 0 Comm: swapper/0 Not tainted 4.4.0 #1",
        "Call Trace:",
        " __report_bad_irq+0x19/0x1b",
        " handle_irq_event+0x19/0x1b",
        "handlers:",
        "[<ffffffff81234567>] mixer_irq",
        "Disabling IRQ #17",
    ]
    for indent in ("", "    "):
        report = only([indent + line for line in lines])
        assert report.title == "interrupt that nobody handles in mixer_irq"


@pytest.mark.parametrize("caller", ["", "[   T77]"])
def test_what_a_program_says_before_a_kernels_trace_does_not_begin_it(caller: str) -> None:
    program = "WARNING: mixer does not have a stable interface."
    shown = ["Call Trace:", " mixer_scale+0x29/0x60", " mixer_ioctl+0x12/0x40"]
    assert reports(encode([*stamped(["eth0: up"], caller), program, *stamped(shown, caller)])) == []
    oops = ["odd exception: 0000 [#1] SMP", *X86_TRACE]
    report = only([*stamped(["eth0: up"], caller), program, *stamped(oops, caller)])
    assert (report.title, report.start_line) == ("oops in mixer_scale", 3)
