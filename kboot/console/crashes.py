"""What the crash detector said so far, and which of it ends a wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from kboot.crash import CrashReport, Event, Opened

#: A report is complete when the line has been silent for so long, ...
QUIET_S = 1.5
#: ... or so long after its first line, whatever else is printed.
OPEN_LIMIT_S = 10.0
#: Reports of one title that are kept with text and frames.
FULL_REPORTS = 20
#: With so many reports, those that repeat a title are counted and not kept.
MAX_REPORTS = 10_000


class CrashScanner(Protocol):
    """Console bytes to crash events: `kboot.crash.Scanner`."""

    def feed(self, data: bytes, /) -> Sequence[Event]:
        """Take the next bytes of the log."""

    def quiet(self) -> Sequence[Event]:
        """The line has been silent for a while: complete what is open."""

    def close(self) -> Sequence[Event]:
        """The log has ended."""

    def expect_reset(self) -> None:
        """The next firmware or kernel banner is wanted."""


class ExpectedCrash:
    """Receives the crash that a test provokes; see `Console.expecting`."""

    def __init__(self, wanted: Callable[[CrashReport], bool], *, ends_waits: bool = False) -> None:
        self._wanted = wanted
        self.ends_waits = ends_waits
        self.reports: list[CrashReport] = []

    @property
    def report(self) -> CrashReport | None:
        """The first crash that was wanted, or None so far."""
        return self.reports[0] if self.reports else None

    def take(self, report: CrashReport) -> bool:
        """Keep `report` if it is wanted; say whether it was."""
        wanted = self._wanted(report)
        if wanted:
            self.reports.append(report)
        return wanted


class CrashLog:
    """The reports of one console. Not thread-safe; its console locks."""

    def __init__(self, scanner: CrashScanner) -> None:
        self._scanner = scanner
        self._boxes: list[ExpectedCrash] = []
        self._opened: float | None = None
        self.reports: list[CrashReport] = []
        #: How many reports there were of each title.
        self.counts: dict[str, int] = {}
        #: The fatal crash nobody expected: from now on every wait ends with it.
        self.fatal: CrashReport | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Take console bytes."""
        self._note(self._scanner.feed(data), now)

    def settle(self, now: float, silent_s: float, *, ended: bool = False) -> None:
        """Complete an open report when nothing more can be hoped for."""
        if self._opened is None:
            return
        if ended or silent_s >= QUIET_S or now - self._opened >= OPEN_LIMIT_S:
            self._note(self._scanner.quiet(), now)
            self._opened = None

    def close(self, now: float) -> None:
        """The log has ended for good."""
        self._note(self._scanner.close(), now)

    def expect_reset(self) -> None:
        """A reset is wanted; what was fatal before it no longer ends a wait."""
        self._scanner.expect_reset()
        self.fatal = None

    @contextmanager
    def expecting(
        self, wanted: Callable[[CrashReport], bool], *, ends_waits: bool = False
    ) -> Iterator[ExpectedCrash]:
        """Put crashes that `wanted` accepts into a box for the length of the ``with``.

        With `ends_waits`, a fatal one ends waits as any other does, until the ``with`` ends.
        """
        box = ExpectedCrash(wanted, ends_waits=ends_waits)
        self._boxes.append(box)
        try:
            yield box
        finally:
            self._boxes.remove(box)
            if any(report is self.fatal for report in box.reports):
                self.fatal = None

    @property
    def open(self) -> bool:
        """Whether a report has begun that is not complete."""
        return self._opened is not None

    def _note(self, events: Sequence[Event], now: float) -> None:
        for event in events:
            if isinstance(event, Opened):
                self._opened = self._opened if self._opened is not None else now
                continue
            self._opened = None
            report = self._keep(event)
            taker = next((box for box in reversed(self._boxes) if box.take(report)), None)
            if event.fatal and self.fatal is None and (taker is None or taker.ends_waits):
                self.fatal = event

    def _keep(self, report: CrashReport) -> CrashReport:
        """Add a report to those that are kept, in the length that is; what was kept."""
        count = self.counts[report.title] = self.counts.get(report.title, 0) + 1
        if count > FULL_REPORTS and not report.fatal:
            first_line = report.text.partition("\n")[0]
            report = replace(report, text=first_line, frames=(), caused_by=None)
            if len(self.reports) >= MAX_REPORTS:
                return report
        self.reports.append(report)
        return report
