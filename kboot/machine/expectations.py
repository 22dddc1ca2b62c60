"""Crashes and warnings that a test expects, those that it allows, and all others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kboot.config import parse
from kboot.console import Console
from kboot.crash import COMPLAINTS, CrashKind, CrashReport
from kboot.deadline import Deadline
from kboot.errors import (
    ConfigError,
    GuestError,
    HungAfterPanic,
    KernelCrash,
    NoCrash,
    NoReboot,
    RebootLoop,
    SecondCrash,
    WrongCrash,
)

K = CrashKind

#: Deaths that the kernel does not announce.
_SILENT = frozenset({K.UNEXPECTED_RESET, K.HANG})

#: Names that stand for several kinds. ``panic`` is one more: see `Wanted`.
FAMILIES: Mapping[str, frozenset[CrashKind]] = {
    "oops": frozenset(
        {
            K.OOPS,
            K.PAGE_FAULT,
            K.NULL_DEREFERENCE,
            K.GENERAL_PROTECTION,
            K.DIVIDE_ERROR,
            K.INVALID_OPCODE,
            K.DOUBLE_FAULT,
            K.STACK_OVERFLOW,
            K.BUG,
            K.DATA_CORRUPTION,
            K.USERCOPY,
        }
    ),
    "warning": frozenset({K.WARNING, K.REFCOUNT, K.ODEBUG}),
    "lockup": frozenset(
        {K.SOFT_LOCKUP, K.HARD_LOCKUP, K.RCU_STALL, K.HUNG_TASK, K.WORKQUEUE_LOCKUP}
    ),
    "lockdep": frozenset(
        {K.DEADLOCK, K.LOCK_HELD, K.LOCK_MISUSE, K.INVALID_WAIT_CONTEXT, K.SUSPICIOUS_RCU}
    ),
}

#: An oops is followed by its panic, if by any, before the line has been silent for so long.
_SETTLED_S = 0.5
_SETTLE_LIMIT_S = 3.0

#: When another crash has come, the expected one has at most this long.
_PATIENCE_AFTER_ANOTHER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A description of crashes. Made by `wanted`.

    `kind` is a value of `CrashKind`, or a family: one of `FAMILIES`, or ``panic``, which is every
    report that the kernel died of and said so. None is any.
    """

    kind: str | None
    #: Found in the title, or in the report's first line; None fits all.
    match: re.Pattern[str] | None

    def fits(self, report: CrashReport) -> bool:
        """Whether `report` is one of them."""
        if self.kind == K.PANIC:
            right = report.fatal and report.kind not in _SILENT
        else:
            right = self.kind in {None, report.kind} or report.kind in FAMILIES.get(
                self.kind or "", ()
            )
        first_line = report.text.partition("\n")[0]
        return right and (
            self.match is None
            or self.match.search(report.title) is not None
            or self.match.search(first_line) is not None
        )

    def __str__(self) -> str:
        what = f"a crash of kind {self.kind}" if self.kind else "a crash"
        return f"{what} that matches {self.match.pattern!r}" if self.match else what


def wanted(kind: str | None = None, match: str | None = None) -> Wanted:
    """A description from what a test author wrote. `ConfigError` names the mistake."""
    names = [*CrashKind, *FAMILIES]
    if kind is not None and kind not in names:
        raise ConfigError(f"no kind of crash is called {kind!r}{parse.near(kind, names)}")
    try:
        pattern = None if match is None else re.compile(match)
    except re.error as error:
        raise ConfigError(f"{match!r} is not a regular expression: {error}") from error
    return Wanted(kind=None if kind is None else str(kind), match=pattern)


class ExpectedCrash:
    """The crash that a test provokes; complete when the ``with`` has ended."""

    def __init__(self, description: Wanted) -> None:
        self._wanted = description
        self._reports: list[CrashReport] = []

    @property
    def report(self) -> CrashReport:
        """The report that was expected."""
        if not self._reports:
            raise RuntimeError("the crash is known after the `with`, not inside")
        return self._reports[0]

    @property
    def reports(self) -> tuple[CrashReport, ...]:
        """That report, and what followed from it: repetitions, the panic that ended an oops."""
        return tuple(self._reports)

    @property
    def fatal(self) -> bool:
        """Whether the kernel died of it."""
        return any(report.fatal for report in self._reports)

    @property
    def died_at(self) -> int:
        """Where the first report of the kernel's death begins: a byte of the console's record."""
        return next(report.start_offset for report in self._reports if report.fatal)

    def accept(self, report: CrashReport) -> bool:
        """Take a report, in the order they come; whether it is the one, or follows from it."""
        if not self._reports:
            fits = self._wanted.fits(report)
        else:
            # Whatever a dying kernel says, it is dead already.
            fits = (
                self.fatal
                or report.title == self.report.title
                or any(cause is self.report for cause in chain(report))
            )
        if fits:
            self._reports.append(report)
        return fits

    def includes(self, report: CrashReport) -> bool:
        """Whether `report` was taken, or led to one that was."""
        return any(link is report for taken in self._reports for link in chain(taken))


def is_complaint(report: CrashReport) -> bool:
    """Whether it is one that the kernel survived, of hardware or memory: no test fails for it."""
    return report.kind in COMPLAINTS and not report.fatal


def chain(report: CrashReport) -> Iterator[CrashReport]:
    """The report, what caused it, what caused that, and so on."""
    link: CrashReport | None = report
    while link is not None:
        yield link
        link = link.caused_by


@contextlib.contextmanager
def expecting(
    console: Console,
    description: Wanted,
    *,
    tolerates: Callable[[CrashReport], bool],
    timeout_s: float,
) -> Iterator[ExpectedCrash]:
    """For `Machine.expect_crash`: the part of it that needs the console only.

    A report that the kernel survives, and that `tolerates` lets pass, is no other crash.
    """
    crash = ExpectedCrash(description)
    before = len(console.reports)
    with console.expecting(crash.accept, ends_waits=True):
        try:
            yield crash
            _wait(console, crash, Deadline(timeout_s), before)
        except KernelCrash as error:
            if not crash.includes(error.report):
                raise _other(crash, description, error.report) from error
        except GuestError:
            # A command that got no answer, and the reason why.
            if not crash.fatal:
                raise
        others = [
            report
            for report in console.reports[before:]
            if not (crash.includes(report) or tolerates(report) or is_complaint(report))
        ]
    if crash.reports:
        others = [other for other in others if other.start_offset > crash.report.start_offset]
    if others:
        raise _other(crash, description, others[-1])
    if crash.reports:
        return
    raise NoCrash(
        f"expected {description}; none came in {timeout_s:g} s, "
        f"last console line: {console.last_line!r}"
    )


def _wait(console: Console, crash: ExpectedCrash, deadline: Deadline, before: int) -> None:
    """Wait for the crash and for what follows at once; return without one when time is up."""
    pause = console.watch("crash that was expected")
    while not crash.reports and not deadline.expired:
        if len(console.reports) > before:
            deadline = deadline.within(_PATIENCE_AFTER_ANOTHER_S)
            before = len(console.reports)
        pause(deadline.remaining)
    if crash.reports and not crash.fatal:
        limit = Deadline(_SETTLE_LIMIT_S)
        while console.silent_s < _SETTLED_S and not limit.expired:
            pause(_SETTLED_S)
        console.check()


def _other(crash: ExpectedCrash, description: Wanted, report: CrashReport) -> KernelCrash:
    """The error for a crash that is not the expected one."""
    if crash.reports:
        return SecondCrash(
            f"after the expected crash ({crash.report.title}) came another: {report.title}", report
        )
    return WrongCrash(f"expected {description}; what came is {report.title}", report)


def not_recovered(
    error: KernelCrash | NoReboot, crash: ExpectedCrash, *, command_line: str, last_line: str
) -> GuestError:
    """The error for a machine that did not come back from `crash`; `error` is how it showed."""
    title = crash.report.title
    if isinstance(error, NoReboot):
        if not crash.fatal:
            return NoReboot(f"{error}; its kernel went on after {title}")
        waits = [word for word in command_line.split() if word.startswith("panic=")][-1:]
        why = "panic=0 has it wait for a reset" if waits == ["panic=0"] else " ".join(waits)
        return HungAfterPanic(
            f"the kernel hung after its crash ({title}): {error}; {why}; "
            f"last console line: {last_line!r}"
        )
    again = error.report
    if again.kind in _SILENT or any(again.title == report.title for report in crash.reports):
        return RebootLoop(
            f"reboot loop: after {title} the machine came back and went down again before it was "
            f"ready: {again.title}"
        )
    return SecondCrash(f"on its way back from {title} the machine crashed: {again.title}", again)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A report that a test had allowed."""

    report: CrashReport
    by: Wanted


class ReportFilter:
    """Sorts what the kernel survived and reported: expected, allowed, or unexpected.

    Pure: `sort` takes all reports so far, and looks at each once.
    """

    def __init__(self) -> None:
        #: What the test that runs allows.
        self.allowances: Sequence[Wanted] = ()
        #: What tests have allowed so far.
        self.allowed: list[Allowed] = []
        self._told = 0
        self._expected: list[ExpectedCrash] = []
        self._boot_starts: list[int] = []
        self._seen = 0

    def expect(self, crash: ExpectedCrash) -> None:
        """A test expected this crash."""
        self._expected.append(crash)

    def begin_boot(self, offset: int) -> None:
        """A boot began at this byte of the console's record."""
        self._boot_starts.append(offset)

    @property
    def boot_start(self) -> int:
        """The byte of the console's record at which the present boot began, as far as is known."""
        return self._boot_starts[-1] if self._boot_starts else 0

    @property
    def seen(self) -> int:
        """How many reports it has looked at."""
        return self._seen

    def sort(self, reports: Sequence[CrashReport]) -> list[CrashReport]:
        """The new reports that nobody asked for. Those of a kernel's death are no part of it."""
        new = [
            report
            for report in reports[self._seen :]
            if not report.fatal and not is_complaint(report)
        ]
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
        later = (start for start in self._boot_starts if start > crash.died_at)
        return crash.died_at < report.start_offset < next(later, float("inf"))


def crash_of(reports: Sequence[CrashReport]) -> KernelCrash | None:
    """The error for what the kernel reported in passing and should not have; None if nothing."""
    if not reports:
        return None
    more = f" (and {len(reports) - 1} more)" if len(reports) > 1 else ""
    return KernelCrash(f"the kernel reported: {reports[0].title}{more}", reports[0])
