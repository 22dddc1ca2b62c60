"""What the kernel reported in passing: expected, allowed, or to be answered for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kboot.boot.expectations import ExpectedCrash, Wanted
from kboot.crash import CrashReport
from kboot.errors import KernelCrash


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A report that a test had allowed."""

    report: CrashReport
    by: Wanted


class Judge:
    """Sorts what the kernel reported in passing: expected, allowed, or to be answered for.

    Pure: `sort` takes all reports so far, and looks at each once.
    """

    def __init__(self) -> None:
        #: What the test that runs allows.
        self.allowances: Sequence[Wanted] = ()
        #: What tests have allowed so far.
        self.allowed: list[Allowed] = []
        self._told = 0
        self._expected: list[ExpectedCrash] = []
        self._lives: list[int] = []
        self._seen = 0

    def expect(self, crash: ExpectedCrash) -> None:
        """A test expected this crash."""
        self._expected.append(crash)

    def new_life(self, offset: int) -> None:
        """The machine began anew at this byte of the console's record."""
        self._lives.append(offset)

    @property
    def last_life(self) -> int:
        """The byte of the console's record at which the present life began, as far as is known."""
        return self._lives[-1] if self._lives else 0

    @property
    def seen(self) -> int:
        """How many reports it has looked at."""
        return self._seen

    def sort(self, reports: Sequence[CrashReport]) -> list[CrashReport]:
        """The new reports that nobody asked for. Those of a kernel's death are no part of it."""
        new = [report for report in reports[self._seen :] if not report.fatal]
        self._seen = len(reports)
        return [report for report in new if not self._covered(report)]

    def take_allowed(self) -> list[Allowed]:
        """What was allowed since the last call."""
        new = self.allowed[self._told :]
        self._told = len(self.allowed)
        return new

    def allowance(self, report: CrashReport) -> Wanted | None:
        """What allows `report`, if anything does."""
        if report.fatal:
            return None
        return next((each for each in self.allowances if each.fits(report)), None)

    def _covered(self, report: CrashReport) -> bool:
        if any(
            crash.includes(report) or self._is_aftermath(report, crash) for crash in self._expected
        ):
            return True
        allowance = self.allowance(report)
        if allowance:
            self.allowed.append(Allowed(report=report, by=allowance))
        return allowance is not None

    def _is_aftermath(self, report: CrashReport, crash: ExpectedCrash) -> bool:
        """Whether a kernel said it that was dying of `crash`."""
        if not crash.fatal:
            return False
        rebirth = next((life for life in self._lives if life > crash.died_at), float("inf"))
        return crash.died_at < report.start_offset < rebirth


def crash_of(reports: Sequence[CrashReport]) -> KernelCrash | None:
    """The error for what the kernel reported in passing and should not have; None if nothing."""
    if not reports:
        return None
    more = f" (and {len(reports) - 1} more)" if len(reports) > 1 else ""
    return KernelCrash(f"the kernel reported: {reports[0].title}{more}", reports[0])
