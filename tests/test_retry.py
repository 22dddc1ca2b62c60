"""The setting ``retry``: failed tests again, told apart from faults of the host's."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.test_suites import CONFTEST

SUITE = """
import pytest

from kboot.errors import GuestError, InfraError

RUNS = {}


def run(name):
    RUNS[name] = RUNS.get(name, 0) + 1
    return RUNS[name]


@pytest.fixture(scope="module")
def kept():
    return run("fixture")


def test_good(machine, kept):
    assert run("good") == 1


def test_flaky(machine, kept):
    machine.guest.run("echo")
    assert run("flaky") == 3, "not yet"


def test_bad(machine, kept):
    run("bad")
    raise GuestError("the kernel is bad")


def test_host_recovers(machine, kept):
    if run("host") < 3:
        raise InfraError("the disk is full")


def test_host_and_kernel(machine, kept):
    number = run("both")
    if number == 1:
        raise InfraError("the disk is full")
    assert number > 2, "the kernel was bad"


def test_host_is_gone(machine, kept):
    run("gone")
    raise InfraError("the host is gone")


def test_without_a_machine():
    run("plain")
    assert False


def test_each_run_had_a_pristine_machine(machine, kept):
    assert RUNS == {
        "fixture": 1, "good": 1, "flaky": 3, "bad": 3, "host": 3, "both": 3, "gone": 3, "plain": 1,
    }
    # All above had one each; where nothing failed, they shared it.
    assert machine.evidence_directory.name.startswith("011-")


def test_cases(machine):
    number = run("cases")
    results = machine.ktap("good" if number == 2 else "bad")
"""


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_what_fails_only_sometimes_is_flaky_and_never_passed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=SUITE)
    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "--kboot-retry=2", "--junitxml=junit.xml"), *arguments
    )
    output = result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 3 passed, 1 error, 4 flaky" in output
    for line in (
        "test_it.py::test_flaky: flaky: failed 2/3",
        "test_it.py::test_bad: failed 3/3",
        "test_it.py::test_host_recovers: 2 infrastructure faults",
        "test_it.py::test_host_and_kernel: flaky: failed 1/2, 1 infrastructure fault",
        "test_it.py::test_host_is_gone: 3 infrastructure faults",
        "test_it.py::test_cases: flaky: failed 1/2",
    ):
        assert line in output
    cases = {
        f"{case.attrib['classname']}:{case.attrib['name']}": case
        for case in ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314  our own
    }
    failure = cases["test_it:test_flaky"].find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "flaky"
    assert failure.attrib["message"].startswith("flaky 2/3: ")
    assert cases["test_it:test_host_recovers"].find("failure") is None
    assert cases["test_it:test_host_is_gone"].find("error") is not None
    # Of the runs, one is shown: that which failed.
    case = cases["test_it.test_cases:b"].find("failure")
    assert case is not None
    assert case.attrib["message"] == "flaky 1/2: failed"


def test_without_the_setting_a_failure_is_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_it(machine):\n    assert False\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert "run again" not in result.stdout.str()
