"""The cases of a kernel's own test suites, and how they ended, whichever format told of them."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kboot.crash import CrashReport
from kboot.errors import GuestError, SuiteFailed


class Status(StrEnum):
    """How a case ended; the value is what people and JSON see."""

    PASSED = "passed"
    FAILED = "failed"
    #: The suite itself gave up waiting for it.
    TIMEOUT = "timeout"
    #: The kernel crashed, hung or was reset while it ran.
    CRASHED = "crashed"
    SKIPPED = "skipped"
    #: It failed, and was expected to.
    EXPECTED_FAILURE = "expected failure"
    #: It was planned, and there is no result.
    NOT_RUN = "not run"
    #: A suite that ran to its end and had no cases.
    EMPTY = "no cases"


#: So many bad cases are named in one line.
_NAMED = 3

#: A suite with one of these has not passed.
BAD = frozenset({Status.FAILED, Status.TIMEOUT, Status.CRASHED, Status.NOT_RUN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of a suite, or a suite as a whole."""

    status: Status
    #: Empty where nothing tells it: a planned case that never ran.
    name: str
    #: The suites around it, outermost first.
    path: tuple[str, ...] = ()
    #: Its place in its suite, from 1.
    number: int
    #: It is the result of a suite that has cases: those count, and not the suite.
    suite: bool = False
    #: ``SKIP``, ``TODO``, ``XFAIL``, ``TIMEOUT``, ``ERROR``, or empty.
    directive: str = ""
    #: What the result says behind its name, or why there is none.
    reason: str = ""
    #: What the suite printed about it, each line without its ``#``.
    diagnostics: tuple[str, ...] = ()
    #: What else was printed in its time: the kernel's messages.
    messages: tuple[str, ...] = ()
    #: What the kernel reported in its time: crashes, warnings.
    reports: tuple[CrashReport, ...] = ()
    #: First and last line of the log that belong to it, from 1; 0 for one that never ran.
    start_line: int = 0
    end_line: int = 0
    #: As far as the kernel's times tell.
    duration_s: float | None = None

    @property
    def label(self) -> str:
        """Its name, or its number where it has none."""
        return self.name or f"case {self.number}"

    @property
    def full_name(self) -> str:
        """Its suites and its label: ``suite/case``."""
        return "/".join((*self.path, self.label))

    @property
    def bad(self) -> bool:
        """Whether it keeps its suite from having passed."""
        return self.status in BAD


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResults:
    """What one run of suites has given."""

    #: The command, module or log that they come from.
    source: str
    #: In their order; suites as a whole stand behind their cases.
    cases: tuple[Case, ...]
    #: Of the command; None if it has none, or did not end.
    exit_status: int | None = None
    #: What ended the run before its time.
    error: GuestError | None = None

    @property
    def passed(self) -> bool:
        """Whether no case and no suite is bad, and nothing ended them."""
        return self.error is None and passed(self.cases)

    @property
    def counts(self) -> Mapping[Status, int]:
        """How many cases ended how."""
        return count(self.cases)

    def check(self) -> None:
        """`SuiteFailed` names the bad cases, if there are any; otherwise what ended the run."""
        bad = [case for case in to_report(self.cases) if case.bad]
        if bad:
            first = ", ".join(f"{case.full_name}: {case.status}" for case in bad[:_NAMED])
            more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise SuiteFailed(f"{self.source}: {in_words(self.counts)}: {first}{more}")
        if self.error is not None:
            raise self.error


def expect_failures(cases: Iterable[Case], expected: Mapping[str, str]) -> list[Case]:
    """The cases, those that failed and are expected to (pattern of the name -> why) marked so.

    Patterns are as in file names: ``suite/case*``. A crash is never expected.
    """
    return [_expected(case, expected) for case in cases]


def _expected(case: Case, expected: Mapping[str, str]) -> Case:
    if case.status not in {Status.FAILED, Status.TIMEOUT}:
        return case
    for pattern, reason in expected.items():
        if fnmatch.fnmatchcase(case.full_name, pattern):
            return replace(case, status=Status.EXPECTED_FAILURE, reason=reason)
    return case


def count(cases: Iterable[Case]) -> Mapping[Status, int]:
    """How many cases ended how; suites as a whole are not counted."""
    counts = Counter(case.status for case in cases if not case.suite)
    return {status: counts[status] for status in Status}


def to_report(cases: Iterable[Case]) -> list[Case]:
    """The cases, and of the suites those that are bad though none of their cases is."""
    known = list(cases)
    excused = {
        case.path[:depth]
        for case in known
        if case.bad and not case.suite
        for depth in range(1, len(case.path) + 1)
    }
    return [
        case
        for case in known
        if not case.suite or (case.bad and (*case.path, case.name) not in excused)
    ]


def passed(cases: Iterable[Case]) -> bool:
    """Whether no case and no suite is bad."""
    return not any(case.bad for case in cases)


def in_words(counts: Mapping[Status, int]) -> str:
    """Such as ``3 passed, 1 failed, 2 not run``."""
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number) or (
        "no cases"
    )


def first_title(reports: Sequence[CrashReport]) -> str:
    """The title of what the kernel died of, or of what it reported first; empty for none."""
    if not reports:
        return ""
    report = next((each for each in reports if each.fatal), reports[0])
    while report.caused_by is not None:
        report = report.caused_by
    return report.title
