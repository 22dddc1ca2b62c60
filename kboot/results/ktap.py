"""KTAP, the kernel's test output, to cases: pure, streaming, for logs that were cut anywhere.

`Parser` takes the bytes of a log in pieces of any size and returns the cases that have ended.
Suites are told apart by their indentation, or by the ``#`` of a comment, as kselftest nests what a
program prints. What the kernel prints and what programs print are two texts on one line: each has
its suites, and the lines of the one are messages in the time of the other's cases.

`read_log` blames crashes: what the kernel died of belongs to the case that ran, and what was
planned behind it was not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kboot import boot_messages
from kboot.crash import COMPLAINTS, CrashKind, CrashReport, Scanner
from kboot.results import ktap_lines
from kboot.results.cases import Case, Status
from kboot.results.ktap_lines import LineReader, Result, Words, outcome
from kboot.results.ktap_suites import RESET, Level, Track

#: A longer line is nothing that a suite prints.
_LONG_LINE = 1 << 16
_LOG_ENDS = "the log ends before it"


class Parser:
    """Takes a log in pieces; each call returns the cases that have ended, in the log's order.

    Without `comments`, what stands behind a ``#`` is no result, but a diagnostic line.
    """

    def __init__(self, *, comments: bool = True) -> None:
        self._partial = b""
        #: Lines so far.
        self.line = 0
        self._cases: list[Case] = []
        self._reader = LineReader()
        self._programs = Track(self._cases.append, comments=comments)
        self._kernel = Track(self._cases.append, comments=comments)
        self._tracks = (self._programs, self._kernel)
        self._is_going_down = False
        #: Whether there was anything about suites.
        self.found = False
        #: What the kernel reported when no case ran.
        self.unblamed: list[CrashReport] = []

    @property
    def running(self) -> str:
        """The case that runs, as far as can be told; empty if none does."""
        return self._last_track().running

    def feed(self, data: bytes) -> list[Case]:
        """Take the next bytes."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        for raw in whole:
            self._take(raw)
        return self._take_cases()

    def take(self, line: str, time_s: float | None) -> list[Case]:
        """Take a whole line, as `kboot.console` gives it, and when it came."""
        self._take(line.encode(), time_s)
        return self._take_cases()

    def crash(self, report: CrashReport) -> list[Case]:
        """The kernel reported this, behind what was fed so far."""
        track = self._last_track()
        if track.is_open:
            track.add_report(report)
        else:
            self.unblamed.append(report)
        if report.kind is CrashKind.UNEXPECTED_RESET:
            for each in self._tracks:
                each.end(RESET)
        return self._take_cases()

    def close(
        self, reason: str = _LOG_ENDS, *, complete: bool = False, status: Status | None = None
    ) -> list[Case]:
        """The log has ended, and why. `complete`: its last line is whole without a newline, too.

        The case that ran, if one did, has this `status`; unless given, it was not run.
        """
        partial, self._partial = self._partial, b""
        if partial:
            self._take_last(partial, complete=complete)
        running = self._last_track()
        for track in self._tracks:
            track.end(reason, status if track is running else None)
        return self._take_cases()

    def _take_cases(self) -> list[Case]:
        cases = self._cases[:]
        self._cases.clear()
        return cases

    def _last_track(self) -> Track:
        """Whose suites the log was about last, of those that run."""
        return max(self._tracks, key=lambda track: (track.is_open, track.last_line))

    def _take(self, raw: bytes, time_s: float | None = None) -> None:
        self.line += 1
        for words in self._reader.words(raw[:_LONG_LINE]):
            is_timed = words.stamped or time_s is None
            self._take_words(words if is_timed else words._replace(time_s=time_s))

    def _take_words(self, words: Words) -> None:
        track = self._kernel if words.stamped else self._programs
        other = self._programs if words.stamped else self._kernel
        token = ktap_lines.token(words.text)
        if token is not None and track.take(token, words, self.line):
            self.found = True
        elif words.stamped and self._is_new_boot(words):
            for each in self._tracks:
                each.end(RESET)
        else:
            track.add_line(words.text, self.line)
        if other.levels and words.text:
            other.add_line(words.text, self.line)

    def _is_new_boot(self, words: Words) -> bool:
        """Whether a kernel begins behind one that died or was rebooted."""
        if boot_messages.is_goodbye(words.text):
            self._is_going_down = True
        elif words.time_s == 0 and boot_messages.begins_with_banner(words.text):
            ends = self._is_going_down or any(track.is_dead for track in self._tracks)
            self._is_going_down = False
            return ends
        return False

    def _take_last(self, partial: bytes, *, complete: bool) -> None:
        """A line without its end may be a part of one: it counts if all is complete with it."""
        if complete:
            self._take(partial)
            return
        self.line += 1
        for words in self._reader.words(partial):
            track = self._kernel if words.stamped else self._programs
            token = ktap_lines.token(words.text)
            if isinstance(token, Result) and _completes(track.levels, token):
                track.take(token, words, self.line)
            elif isinstance(token, Result):
                track.take_cut(token, words.text, self.line)
            else:
                track.add_line(words.text, self.line)


def _completes(levels: list[Level], result: Result) -> bool:
    """Whether a result is the last that was planned, with the name that its suite has."""
    if not levels or levels[0].key != result.key or len(levels) > 2:
        return False
    child = levels[1].name if len(levels) == 2 else None
    name = outcome(result).name
    last = levels[0].missing == 1 and result.number == levels[0].plan
    return last and not any(level.missing for level in levels[1:]) and child in (None, name)


def read_log(
    data: bytes, *, complete: bool = False, comments: bool = True
) -> tuple[list[Case], Parser]:
    """The cases of a whole log, with the kernel's reports in their times; and what has read them.

    `complete` as in `Parser.close`, `comments` as in `Parser`.
    """
    scanner = Scanner()
    events = [*scanner.feed(data), *scanner.close()]
    reports = [
        event for event in events if isinstance(event, CrashReport) and event.kind not in COMPLAINTS
    ]
    parser = Parser(comments=comments)
    cases = list(_merged(parser, data, sorted(reports, key=lambda each: each.start_line)))
    cases += parser.close(complete=complete)
    return cases, parser


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """A line that a console has printed, as `kboot.console` has it."""

    text: str
    #: When it came, in seconds.
    time_s: float
    #: Bytes of the console's record before it.
    start: int


def read_console(
    lines: Iterable[ConsoleLine],
    reports: Sequence[CrashReport],
    *,
    end: str = _LOG_ENDS,
    status: Status | None = None,
) -> list[Case]:
    """The cases in lines of a console.

    `reports` are what the kernel reported there, in their order, with positions in the same record.
    `end` is why there are no more lines, and `status` that of the case that ran then, unless it was
    not run or has crashed.
    """
    parser = Parser()
    cases: list[Case] = []
    pending = [each for each in reports if each.kind not in COMPLAINTS]
    for line in lines:
        while pending and pending[0].start_offset <= line.start:
            cases += parser.crash(pending.pop(0))
        cases += parser.take(line.text, line.time_s)
    for report in pending:
        cases += parser.crash(report)
    return cases + parser.close(end, status=status)


def _merged(parser: Parser, data: bytes, reports: Iterable[CrashReport]) -> Iterator[Case]:
    """Feed the log, and each report before its first line."""
    position = 0
    for report in reports:
        yield from parser.feed(data[position : report.start_offset])
        position = max(position, report.start_offset)
        yield from parser.crash(report)
    yield from parser.feed(data[position:])
