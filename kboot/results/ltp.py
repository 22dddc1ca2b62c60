"""Results of the Linux Test Project as cases: kirk's JSON report, and the log of runltp.

kirk: ``kirk --json-report FILE`` (libkirk/export.py). runltp: ``runltp -l FILE``, a table with a
line for each test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kboot.results.cases import Case, Status

_HEADER = re.compile(rb"^Testcase +Result +Exit Value *\r?$", re.MULTILINE)
_ROW = re.compile(r"(\S+)\s+(PASS|FAIL|BROK|WARN|CONF|RETR)\s+(-?\d+)\s*$")
_TOTAL = re.compile(r"Total Tests: (\d+)")

#: More tests than LTP has, in a number that was damaged.
_MOST_MISSING = 10_000

#: What LTP calls a result (TPASS, TCONF, ...), and what it means beside the status.
_RESULTS: Mapping[str, tuple[Status, str]] = {
    "pass": (Status.PASSED, ""),
    "fail": (Status.FAILED, ""),
    "brok": (Status.FAILED, "broken: it could not be prepared, or did not end"),
    "warn": (Status.FAILED, "passed with warnings"),
    "conf": (Status.SKIPPED, "not for this configuration"),
    "retr": (Status.FAILED, "retired"),
}


def read(data: bytes) -> list[Case] | None:
    """The cases of a report; None if it is none of LTP's."""
    if data.lstrip()[:1] == b"{":
        return _of_kirk(data)
    return _of_runltp(data) if _HEADER.search(data) else None


def _of_kirk(data: bytes) -> list[Case] | None:
    try:
        found = json.loads(data)
        return [_case(each, number) for number, each in enumerate(found["results"], 1)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _case(result: Mapping[str, Any], number: int) -> Case:
    test = result["test"]
    status, reason = _RESULTS.get(result["status"], (Status.FAILED, str(result["status"])))
    status_of_exit = ", ".join(map(str, test.get("retval", ())))
    reasons = [reason, f"exit status {status_of_exit}"] if status is Status.FAILED else [reason]
    return Case(
        status=status,
        name=str(result["test_fqn"]),
        number=number,
        reason="; ".join(filter(None, reasons)),
        diagnostics=tuple(str(test.get("log", "")).splitlines()),
        duration_s=float(test.get("duration", 0.0)),
    )


def _of_runltp(data: bytes) -> list[Case]:
    cases: list[Case] = []
    planned = 0
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if row := _ROW.match(line):
            status, reason = _RESULTS[row[2].lower()]
            reasons = [reason, f"exit status {row[3]}"] if status is Status.FAILED else [reason]
            cases.append(
                Case(
                    status=status,
                    name=row[1],
                    number=len(cases) + 1,
                    reason="; ".join(filter(None, reasons)),
                    start_line=number,
                    end_line=number,
                )
            )
        elif total := _TOTAL.match(line):
            planned = int(total[1])
    missing = range(len(cases) + 1, min(planned, len(cases) + _MOST_MISSING) + 1)
    return cases + [
        Case(status=Status.NOT_RUN, name="", number=number, reason="there is no result")
        for number in missing
    ]
