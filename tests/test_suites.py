"""Test suites in a guest: their cases as subtests of pytest, in JUnit's file, and crashes in them.

The guest is a replayed one that answers as it is told; `test_suites_boot` has a real one.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kboot.crash import CrashReport, Scanner
from kboot.errors import GuestError, SuiteFailed
from kboot.results.cases import Case, Status, SuiteResults
from kboot.results.ktap import ConsoleLine, read_console
from tests.test_ktap import OOPS, PANIC
from tests.test_testing import machine_on

GOOD = "TAP version 13\n1..2\nok 1 a\nok 2 b # SKIP no hardware\n"
BAD = "TAP version 13\n1..3\nok 1 a\n# why\nnot ok 2 b\n"


def guest(command: str) -> tuple[int, str] | None:
    """Answers commands that are run by the script of `ktap_command`, and no others."""
    answers: dict[str, tuple[int, str]] = {
        "good": (0, GOOD),
        "bad": (0, BAD),
        "mute": (127, "sh: mute: not found\n"),
    }
    return next((answer for name, answer in answers.items() if f"sh -c {name}\n" in command), None)


def test_a_command_gives_its_cases(tmp_path: Path) -> None:
    with machine_on(tmp_path, commands=guest) as machine:
        results = machine.ktap("good")
        assert results.passed
        assert [(case.name, case.status) for case in results.cases] == [
            ("a", Status.PASSED),
            ("b", Status.SKIPPED),
        ]
        assert machine.suites == [results]


def test_what_is_bad_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    with machine_on(tmp_path, commands=guest) as machine:
        results = machine.ktap("bad")
    assert not results.passed
    with pytest.raises(SuiteFailed, match=r"1 passed, 1 failed, 1 not run: b: failed, case 3"):
        results.check()


def test_a_failure_can_be_expected(tmp_path: Path) -> None:
    with machine_on(tmp_path, commands=guest) as machine:
        results = machine.ktap("bad", expected_failures={"b": "a known bug"})
    assert results.counts[Status.EXPECTED_FAILURE] == 1
    assert [case.reason for case in results.cases if case.name == "b"] == ["a known bug"]


def test_a_command_without_results_is_an_error_with_what_it_printed(tmp_path: Path) -> None:
    with (
        machine_on(tmp_path, commands=guest) as machine,
        pytest.raises(GuestError, match=r"'mute' printed no results.*127.*not found"),
    ):
        machine.ktap("mute")


def test_the_history_has_the_command_as_it_was_given(tmp_path: Path) -> None:
    with machine_on(tmp_path, commands=guest) as machine:
        machine.ktap("good")
        last = machine.commands[-1]
    assert (last.command, last.exit_status) == ("good", 0)
    assert "ok 1 a" in last.output_tail


# ------------------------------------------------------------------------ a console's lines


def console_lines(text: str) -> list[ConsoleLine]:
    lines, position = [], 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        lines.append(ConsoleLine(line.rstrip("\n"), 100 + number, position))
        position += len(line)
    return lines


def reports(text: str) -> list[CrashReport]:
    scanner = Scanner()
    events = [*scanner.feed(text.encode()), *scanner.close()]
    return [event for event in events if isinstance(event, CrashReport)]


def test_kernel_messages_belong_to_the_case_in_whose_time_they_came() -> None:
    lines = GOOD.splitlines(keepends=True)
    lines.insert(2, "[    1.000002] usb: one\n")
    lines.insert(4, "[    1.000003] usb: two\n")
    cases = read_console(console_lines("".join(lines)), [])
    assert [case.messages for case in cases] == [("usb: one",), ("usb: two",)]
    assert [case.duration_s for case in cases] == [2.0, 2.0]


def test_what_was_on_the_console_before_the_kernel_died_counts() -> None:
    text = "TAP version 13\n1..3\nok 1 a\n" + OOPS + PANIC
    cases = read_console(console_lines(text), reports(text), end="it died")
    assert [(case.label, case.status) for case in cases] == [
        ("a", Status.PASSED),
        ("case 2", Status.CRASHED),
        ("case 3", Status.NOT_RUN),
    ]
    assert cases[1].reason == "NULL pointer dereference in example_crashes"


def test_the_case_that_ran_when_time_was_up_has_timed_out() -> None:
    cases = read_console(
        console_lines("TAP version 13\n1..3\nok 1 a\n"),
        [],
        end="it did not end in 5 s",
        status=Status.TIMEOUT,
    )
    assert [case.status for case in cases] == [Status.PASSED, Status.TIMEOUT, Status.NOT_RUN]
    assert cases[1].reason == "it did not end in 5 s"


# ------------------------------------------------------------------------------- pytest and JUnit

CONFTEST = """
import pytest

from kboot.config import Config
from kboot.session import open_session
from kboot.testing import FakeBackend, write_kernel
from tests.test_suites import guest


@pytest.fixture(scope="session")
def kboot_session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    kernel = write_kernel(folder / "vmlinuz", "6.99.1-mine")
    config = Config(kernel=str(kernel), isolation="none")
    backend = FakeBackend(commands=guest)
    with open_session(config, evidence=folder / "evidence", backend=backend) as session:
        yield session
"""

SUITE = """
def test_good(machine):
    machine.ktap("good")


def test_bad(machine):
    machine.ktap("bad")


def test_known(machine):
    machine.ktap("bad", expected_failures={"b": "a known bug", "case*": "?"})
"""


def run_suite(
    pytester: pytest.Pytester, *arguments: str
) -> tuple[pytest.RunResult, dict[str, list[ET.Element]]]:
    """A run of `SUITE`, and the children of JUnit's test cases by class and name."""
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=SUITE)
    root = Path(__file__).parent.parent
    pytester.syspathinsert(root)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--junitxml=junit.xml", *arguments
    )
    cases = ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314  our own run
    return result, {f"{c.attrib['classname']}:{c.attrib['name']}": list(c) for c in cases}


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_each_case_is_a_subtest_and_a_testcase_of_junit(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    result, cases = run_suite(pytester, *arguments)
    output = result.stdout.str()
    assert "SUBFAILED[b]" in output
    assert "b: failed" in output
    assert "test_it.py::test_bad: bad: 1 passed, 1 failed, 1 not run" in output
    assert "SuiteFailed: bad: 1 passed, 1 failed, 1 not run" in output
    kinds = {name: [child.attrib.get("type") for child in found] for name, found in cases.items()}
    assert kinds["test_it.test_good:a"] == []
    assert kinds["test_it.test_good:b"] == ["skipped"]
    assert kinds["test_it.test_bad:b"] == ["failed"]
    assert kinds["test_it.test_bad:case 3"] == ["not-run"]
    assert kinds["test_it.test_known:b"] == ["expected-failure"]
    assert "kboot diagnostics\nwhy" in (cases["test_it.test_bad:b"][0].text or "")
    tests = {name: [child.tag for child in found] for name, found in cases.items()}
    assert tests["test_it:test_good"] == ["properties"]
    assert tests["test_it:test_bad"] == ["properties", "failure"]
    suite = ET.parse(pytester.path / "junit.xml").find("testsuite")  # noqa: S314  our own run
    assert suite is not None
    tags = [tag for found in tests.values() for tag in found]
    assert int(suite.attrib["tests"]) == len(cases)
    assert int(suite.attrib["failures"]) == tags.count("failure")
    assert int(suite.attrib["skipped"]) == tags.count("skipped")


def test_a_suite_of_nothing_but_good_cases_has_passed() -> None:
    case = Case(status=Status.PASSED, name="a", number=1)
    assert SuiteResults(source="x", cases=(case,)).passed
