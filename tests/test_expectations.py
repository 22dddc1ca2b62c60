"""What a test may expect of a kernel, and what it is told when that does not happen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kboot.crash import CrashKind, CrashReport
from kboot.errors import ConfigError, HungAfterPanic, KernelCrash, NoReboot, RebootLoop, SecondCrash
from kboot.machine import ExpectedCrash, wanted
from kboot.machine.expectations import ReportFilter, is_complaint, not_recovered

K = CrashKind

OOPS = CrashReport(
    kind=K.NULL_DEREFERENCE,
    title="NULL pointer dereference in zoo_null",
    function="zoo_null",
    frames=(),
    start_line=10,
    end_line=20,
    start_offset=1000,
    end_offset=2000,
    task="sh",
    pid=1,
    cpu=0,
    taint=None,
    fatal=False,
    truncated=False,
    caused_by=None,
    text="BUG: kernel NULL pointer dereference, address: 0000000000000000\n#PF: supervisor",
)
PANIC = replace(
    OOPS,
    kind=K.PANIC,
    title="panic: Fatal exception",
    function=None,
    start_offset=2000,
    end_offset=2100,
    fatal=True,
    text="Kernel panic - not syncing: Fatal exception",
)
AFTER_OOPS = replace(PANIC, caused_by=OOPS)
WARNING = replace(
    OOPS,
    kind=K.WARNING,
    title="WARNING in dev_watchdog",
    start_offset=5000,
    text="WARNING: CPU: 0 PID: 0 at net/sched/sch_generic.c:525 dev_watchdog+0x207/0x210",
)


@pytest.mark.parametrize(
    ("name", "report", "fits"),
    [
        (None, WARNING, True),
        ("null-dereference", OOPS, True),
        ("null-dereference", PANIC, False),
        ("oops", OOPS, True),
        ("oops", PANIC, False),
        ("panic", PANIC, True),
        ("panic", OOPS, False),
        ("panic", replace(PANIC, kind=K.INIT_KILLED), True),
        ("panic", replace(PANIC, kind=K.UNEXPECTED_RESET), False),
        ("unexpected-reset", replace(PANIC, kind=K.UNEXPECTED_RESET), True),
        ("warning", replace(WARNING, kind=K.REFCOUNT), True),
        ("lockup", replace(WARNING, kind=K.RCU_STALL), True),
        ("lockdep", replace(WARNING, kind=K.DEADLOCK), True),
    ],
)
def test_a_kind_or_a_family_fits(name: str | None, report: CrashReport, *, fits: bool) -> None:
    assert wanted(name).fits(report) is fits


def test_a_pattern_looks_at_the_title_and_at_the_first_line_only() -> None:
    assert wanted(match="zoo_null$").fits(OOPS)
    assert wanted(match="address: 0+$").fits(OOPS)
    assert not wanted(match="supervisor").fits(OOPS)
    assert not wanted("warning", "zoo_null").fits(OOPS)


def test_mistakes_in_a_description_are_told_with_their_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'soft-lokup'; did you mean soft-lockup\?"):
        wanted("soft-lokup")
    with pytest.raises(ConfigError, match="not a regular expression"):
        wanted(match="(")


# ------------------------------------------------------------------------- what belongs together


def test_a_panic_belongs_to_the_oops_that_led_to_it() -> None:
    crash = ExpectedCrash(wanted("oops"))
    assert [crash.accept(OOPS), crash.accept(AFTER_OOPS)] == [True, True]
    assert crash.report is OOPS
    assert crash.fatal
    assert crash.died_at == PANIC.start_offset


def test_an_oops_belongs_to_the_panic_that_it_led_to() -> None:
    crash = ExpectedCrash(wanted("panic"))
    assert [crash.accept(OOPS), crash.accept(AFTER_OOPS)] == [False, True]
    assert crash.includes(OOPS)


def test_a_repetition_belongs_to_the_crash_and_another_one_does_not() -> None:
    crash = ExpectedCrash(wanted("oops"))
    again = replace(OOPS, start_offset=3000)
    other = replace(OOPS, title="NULL pointer dereference in elsewhere", start_offset=4000)
    assert [crash.accept(each) for each in (OOPS, again, other)] == [True, True, False]


def test_the_crash_is_not_known_before_it_happened() -> None:
    with pytest.raises(RuntimeError, match="after the `with`"):
        _ = ExpectedCrash(wanted()).report


# -------------------------------------------------------------- how a machine does not come back


def died_of(*reports: CrashReport) -> ExpectedCrash:
    crash = ExpectedCrash(wanted())
    assert all(crash.accept(report) for report in reports)
    return crash


def trouble(error: KernelCrash | NoReboot, crash: ExpectedCrash) -> tuple[type, str]:
    found = not_recovered(error, crash, command_line="console=ttyS0 panic=0", last_line="the end")
    return type(found), str(found)


def test_a_kernel_that_goes_on_has_not_rebooted() -> None:
    kind, text = trouble(NoReboot("the machine did not reboot in 30 s"), died_of(OOPS))
    assert kind is NoReboot
    assert "its kernel went on after NULL pointer dereference in zoo_null" in text


def test_a_dead_kernel_that_does_not_reboot_hangs() -> None:
    kind, text = trouble(NoReboot("the machine did not reboot in 30 s"), died_of(PANIC))
    assert kind is HungAfterPanic
    assert re.search("panic=0 .*'the end'", text)


def test_another_crash_on_the_way_back_is_a_second_one() -> None:
    kind, text = trouble(KernelCrash("", WARNING), died_of(PANIC))
    assert kind is SecondCrash
    assert "WARNING in dev_watchdog" in text


@pytest.mark.parametrize(
    "again", [PANIC, replace(PANIC, kind=K.UNEXPECTED_RESET, title="unexpected reset")]
)
def test_the_same_crash_or_a_reset_on_the_way_back_is_a_loop(again: CrashReport) -> None:
    assert trouble(KernelCrash("", again), died_of(PANIC))[0] is RebootLoop


# ------------------------------------------------------------------- what is reported in passing


def test_what_nobody_asked_for_is_named_once() -> None:
    report_filter = ReportFilter()
    assert report_filter.sort([WARNING]) == [WARNING]
    assert report_filter.sort([WARNING]) == []
    assert report_filter.sort([WARNING, OOPS]) == [OOPS]


@pytest.mark.parametrize("kind", [K.COMPLAINT, K.MACHINE_CHECK])
def test_what_a_kernel_says_of_its_hardware_fails_no_test_unless_it_dies_of_it(kind: K) -> None:
    survived = replace(WARNING, kind=kind)
    assert ReportFilter().sort([survived, WARNING]) == [WARNING]
    assert is_complaint(survived)
    assert not is_complaint(replace(survived, fatal=True))


def test_what_was_expected_is_no_surprise_nor_is_what_led_to_it() -> None:
    report_filter = ReportFilter()
    report_filter.expect(died_of(AFTER_OOPS))
    assert report_filter.sort([OOPS, AFTER_OOPS]) == []


def test_what_is_allowed_is_listed_once() -> None:
    report_filter = ReportFilter()
    report_filter.allowances = [wanted("warning", "dev_watchdog")]
    assert report_filter.sort([WARNING, OOPS]) == [OOPS]
    (allowed,) = report_filter.take_allowed()
    assert (allowed.report, str(allowed.by)) == (
        WARNING,
        "a crash of kind warning that matches 'dev_watchdog'",
    )
    assert report_filter.take_allowed() == []


def test_a_death_cannot_be_allowed() -> None:
    report_filter = ReportFilter()
    report_filter.allowances = [wanted("panic")]
    assert report_filter.allowance(PANIC) is None


def test_the_last_words_of_a_dying_kernel_count_for_nothing_but_those_of_the_next_do() -> None:
    report_filter = ReportFilter()
    report_filter.expect(died_of(PANIC))
    report_filter.begin_boot(6000)
    late = replace(WARNING, start_offset=7000)
    assert report_filter.sort([PANIC, WARNING, late]) == [late]
