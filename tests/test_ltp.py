"""LTP's results as cases, and in ``kboot ktap``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kboot.errors import GuestError
from kboot.results import ltp
from kboot.results.cases import Status
from tests.test_ktap_cli import ktap
from tests.test_testing import machine_on


def kirk_result(name: str, status: str, retval: int, log: str = "") -> dict[str, object]:
    """A result as kirk's export writes it."""
    test = {"command": name, "arguments": [], "log": log, "retval": [str(retval)], "duration": 0.5}
    return {"test_fqn": name, "status": status, "test": {**test, "result": status}}


KIRK = json.dumps(
    {
        "results": [
            kirk_result("abort01", "pass", 0),
            kirk_result("accept02", "fail", 1, "accept02.c:51: TFAIL: no\n"),
            kirk_result("acct01", "conf", 32),
            kirk_result("bind01", "brok", 2),
        ],
        "stats": {"runtime": 2.0, "passed": 1},
        "environment": {"kernel": "6.1.0"},
    }
)

RUNLTP = """\
Test Start Time: Fri Nov 27 03:00:00 2026
-----------------------------------------
Testcase                                           Result     Exit Value
--------                                           ------     ----------
abort01                                            PASS       0
accept02                                           FAIL       1
acct01                                             CONF       32

-----------------------------------------------
Total Tests: 4
Total Skipped Tests: 1
Total Failures: 1
"""


@pytest.mark.parametrize("text", [KIRK, RUNLTP], ids=["kirk", "runltp"])
def test_each_test_is_a_case(text: str) -> None:
    cases = ltp.read(text.encode())
    assert cases is not None
    assert [(case.name, case.status) for case in cases[:3]] == [
        ("abort01", Status.PASSED),
        ("accept02", Status.FAILED),
        ("acct01", Status.SKIPPED),
    ]
    assert cases[1].reason == "exit status 1"


def test_what_kirk_tells_of_a_test_is_kept() -> None:
    cases = ltp.read(KIRK.encode())
    assert cases is not None
    assert cases[1].diagnostics == ("accept02.c:51: TFAIL: no",)
    assert cases[1].duration_s == 0.5
    assert (cases[3].status, cases[3].reason) == (
        Status.FAILED,
        "broken: it could not be prepared, or did not end; exit status 2",
    )


def test_a_test_that_runltp_counts_and_does_not_list_was_not_run() -> None:
    cases = ltp.read(RUNLTP.encode())
    assert cases is not None
    assert [case.status for case in cases[3:]] == [Status.NOT_RUN]


#: Programs as LTP's end, and what each of them is.
PROGRAMS = {
    "good01": ("echo 'good01.c:1: TPASS: fine'", Status.PASSED),
    "bad01": ("echo 'bad01.c:1: TFAIL: no'; exit 1", Status.FAILED),
    "conf01": ("echo 'conf01.c:1: TCONF: not here'; exit 32", Status.SKIPPED),
    "brok01": ("echo 'brok01.c:1: TBROK: no'; exit 2", Status.FAILED),
    "warn01": ("echo 'warn01.c:1: TWARN: no'; exit 4", Status.FAILED),
    "late01": ("sleep 60", Status.FAILED),
}


def test_a_report_by_kirk_itself_is_read(tmp_path: Path) -> None:
    kirk = Path(sys.executable).parent / "kirk"
    assert kirk.exists(), "no kirk: run make setup"
    programs = tmp_path / "testcases" / "bin"
    programs.mkdir(parents=True)
    for name, (text, _) in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "runtest").mkdir()
    (tmp_path / "metadata").mkdir()
    lines = "".join(f"{name} {name}\n" for name in PROGRAMS)
    (tmp_path / "runtest" / "small").write_text(lines)
    command = [
        str(kirk),
        "--run-suite",
        "small",
        "--exec-timeout",
        "1",
        "--json-report",
        "report.json",
    ]
    subprocess.run(
        [*command, "--tmp-dir", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "LTPROOT": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    cases = ltp.read((tmp_path / "report.json").read_bytes())
    assert cases is not None
    found = [(case.name, case.status) for case in cases]
    assert found == [(name, status) for name, (_, status) in PROGRAMS.items()]
    assert cases[1].diagnostics == ("bad01.c:1: TFAIL: no",)


@pytest.mark.parametrize("text", ["", "{", '{"results": 3}', '{"a": 1}', "ok 1 a\n", "[]"])
def test_what_is_none_of_ltps_is_left_to_others(text: str) -> None:
    assert ltp.read(text.encode()) is None


def ltp_guest(command: str) -> tuple[int, str] | None:
    """Answers kirk, and gives its report."""
    if command.startswith("cat <"):
        return (0, KIRK) if "kirk.json" in command else (1, "no such file")
    return (1, "Execution time: 2s\n") if "sh -c kirk" in command else None


def test_a_report_in_the_guest_is_the_commands_results(tmp_path: Path) -> None:
    with machine_on(tmp_path, commands=ltp_guest) as machine:
        results = machine.ktap("kirk", report="/tmp/kirk.json")
        assert machine.suites == [results]
        assert results.counts[Status.FAILED] == 2
        assert [case.name for case in results.cases if case.bad] == ["accept02", "bind01"]
        with pytest.raises(GuestError, match=r"'kirk' left no results in /tmp/none\.json.*Execut"):
            machine.ktap("kirk", report="/tmp/none.json")


def test_kboot_ktap_reads_it(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(KIRK)
    done = ktap(tmp_path / "report.json", "--failures")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 passed, 2 failed, 1 skipped"
