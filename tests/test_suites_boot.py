"""Test suites in a real guest: lines among the kernel's messages, and crashes in their midst."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from kboot.errors import KernelCrash
from kboot.kselftest import START_SCRIPT, read_tree
from kboot.results.cases import Case, Status, SuiteResults
from tests.test_kselftest import write_tree
from tests.zoo.zoo import Zoo

#: The cases of a suite in shell: each does something, and then tells how it went.
SUITE = """\
echo TAP version 13
echo 1..4
echo '# first: about to'
echo '<4>zoo: in the first' >/dev/kmsg
echo ok 1 first
echo not ok 2 second
{third}
echo ok 3 third
echo ok 4 fourth
"""


def run(zoo: Zoo, third: str, timeout: float = 60) -> SuiteResults:
    return zoo.open().ktap(SUITE.format(third=third), timeout=timeout)


def verdicts(results: SuiteResults) -> list[tuple[str, str]]:
    return [(case.label, str(case.status)) for case in results.cases if not case.suite]


def third(results: SuiteResults) -> Case:
    return next(case for case in results.cases if case.number == 3)


def test_each_case_has_the_messages_of_its_time(zoo: Zoo) -> None:
    results = run(zoo, "echo '<4>zoo: in the third' >/dev/kmsg")
    assert verdicts(results) == [
        ("first", "passed"),
        ("second", "failed"),
        ("third", "passed"),
        ("fourth", "passed"),
    ]
    assert [case.messages for case in results.cases] == [
        ("zoo: in the first",),
        (),
        ("zoo: in the third",),
        (),
    ]
    assert results.cases[0].diagnostics == ("first: about to",)
    assert results.exit_status == 0


def test_many_lines_are_neither_lost_nor_delayed_by_the_kernels_log(zoo: Zoo) -> None:
    command = "echo TAP version 13; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo ok $i; done"
    results = zoo.open().ktap(f"{command}; echo 1..300")
    assert len(results.cases) == 300
    assert results.passed


def test_a_panic_is_the_fault_of_the_case_that_ran(zoo: Zoo) -> None:
    results = run(zoo, "echo c > /proc/sysrq-trigger; sleep 60")
    assert verdicts(results) == [
        ("first", "passed"),
        ("second", "failed"),
        ("case 3", "crashed"),
        ("case 4", "not run"),
    ]
    assert isinstance(results.error, KernelCrash)
    assert third(results).reason == results.error.report.title
    assert results.exit_status is None


def test_a_reset_without_a_word_is_the_fault_of_the_case_that_ran(zoo: Zoo) -> None:
    results = run(zoo, "echo triple_fault > /proc/kboot_zoo; sleep 60")
    assert verdicts(results)[2:] == [("case 3", "crashed"), ("case 4", "not run")]


def test_a_reboot_in_the_midst_of_a_case_is_that_cases_fault(zoo: Zoo) -> None:
    results = run(zoo, "echo b > /proc/sysrq-trigger; sleep 60")
    assert "rebooted" in str(results.error)
    assert verdicts(results)[2:] == [("case 3", "crashed"), ("case 4", "not run")]


def test_an_oops_that_the_kernel_survives_is_shown_with_its_case(zoo: Zoo) -> None:
    results = run(zoo, "( echo warn > /proc/kboot_zoo )")
    assert verdicts(results)[2:] == [("third", "passed"), ("fourth", "passed")]
    assert [report.title for report in third(results).reports]


def test_what_does_not_end_is_the_case_that_took_too_long(zoo: Zoo) -> None:
    results = run(zoo, "sleep 600", timeout=4)
    assert verdicts(results)[2:] == [("case 3", "timeout"), ("case 4", "not run")]
    assert third(results).reason == "the command did not end in 4 s"
    with pytest.raises(Exception, match="case 3: timeout"):
        results.check()


def test_programs_of_kselftest_run_in_a_guest_of_busybox_alone(zoo: Zoo, tmp_path: Path) -> None:
    machine = zoo.open()
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(write_tree(tmp_path), arcname="kselftest")
        start = tarfile.TarInfo("kselftest/kboot-run")
        start.size, start.mode = len(START_SCRIPT), 0o755
        archive.addfile(start, io.BytesIO(START_SCRIPT))
    machine.guest.put(tmp_path / "tree.tar", "/tmp/tree.tar")
    machine.guest.succeed("mkdir -p /opt && tar -xf /tmp/tree.tar -C /opt")
    by_id = {program.id: program for program in read_tree(tmp_path / "tree.tar").programs}
    good, bad, dies = (
        machine.ktap(by_id[name].command) for name in ("alpha:good", "alpha:bad", "beta:dies")
    )
    assert good.passed
    assert [case.full_name for case in bad.cases if case.bad] == [
        "selftests: alpha: bad/b",
        "selftests: alpha: bad",
    ]
    assert [(case.label, case.status, case.reason) for case in dies.cases] == [
        ("selftests: beta: dies", Status.CRASHED, "panic: sysrq triggered crash")
    ]
