"""The cases of a kernel's own test suites, and how they ended, whichever format told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kboot.crash import CrashReport


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
