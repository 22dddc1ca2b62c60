"""Lines of KTAP: from the bytes of a log to the words of a test suite, and what each of them is.

The format is that of the kernel's Documentation/dev-tools/ktap.rst, and of the TAP that older
suites and kselftest print. Where a line stands in the tree of suites shows in its `key`: what comes
before its first word, spaces or the ``#`` of a comment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from kboot.crash.lines import parse, without_escapes
from kboot.results.cases import Status

#: As print_time() and print_caller() in kernel/printk/printk.c write them.
_STAMP = re.compile(r"(?:<\d+>)?\[ *(\d{1,11}\.\d{6})\](?: ?\[ *[TC]\d+(?:/[TC]?\d+)?\])? ?")
#: The same in the midst of a line: two messages, or a message in the midst of a program's line.
_STAMP_WITHIN = re.compile(r"\[ *\d{1,11}\.\d{6}\](?: ?\[ *[TC]\d+(?:/[TC]?\d+)?\])? ")

#: A time that has lost some of its bytes: a serial line drops them where the host is busy.
_DAMAGED_STAMP = re.compile(r"(?=[ \d.]*[\[\]])\[? *[\d.]{3,18}\]? ?")

_LINE = re.compile(
    r"([ \t#]*?)(?:"
    r"(ok|not ok) (\d{1,9})(?![^\s#])(.*)"
    r"|(K?TAP) version \d+"
    r"|1\.\.(\d{1,9})\s*(?:#(.*))?"
    r"|# Subtest: (.+)"
    r"|Bail out!(.*)"
    r")$"
)
_VERSION_BEHIND = re.compile(r"(.+?)(?:K?TAP) version \d+$")

#: What a result line, a plan, a version line or a comment may begin with.
_BEGINNINGS = ("ok ", "not ok ", "1..", "KTAP version ", "TAP version ", "Bail out!")

_COMMENT = re.compile(r"(?:^|(?<=\s))(?<!\\)#\s*(.*)$")
_DIRECTIVE = re.compile(r"(skip|todo|xfail|timeout|error)(?:ped)?\b(?!=)[:\s]*(.*)$", re.IGNORECASE)
_MARKS = re.compile(r"(?:[ \t]*# ?)+")

#: KUnit: ``# name_of_case: message``; kselftest_harness.h: ``#  RUN   name ...``; the runner of
#: kselftest: ``# selftests: timers: posix_timers``.
_STARTED = re.compile(
    r"[ \t#]*#\s+(?:RUN\s+(\S.*?)\s+\.\.\.$|(selftests: .+: \S+)$|([a-z]\w*_\w+): )"
)
_PROGRAM = re.compile(r"# (selftests: .+: \S+)$")


_TOTALS = re.compile(
    r"# Totals: pass:(\d+) fail:(\d+) xfail:(\d+) xpass:(\d+) skip:(\d+) error:(\d+)$"
)
_COUNTED = (
    *(Status.PASSED, Status.FAILED, Status.EXPECTED_FAILURE),
    *(Status.PASSED, Status.SKIPPED, Status.FAILED),
)
#: More are a number that was damaged.
_MOST_COUNTED = 10_000


class Result(NamedTuple):
    """A result line."""

    key: str
    ok: bool
    number: int
    #: Behind the number.
    rest: str


class Version(NamedTuple):
    """Suites begin here."""

    key: str


class Plan(NamedTuple):
    """How many results there will be, or have been."""

    key: str
    number: int
    comment: str


class Header(NamedTuple):
    """The name of the suite that begins here."""

    key: str
    name: str


class BailOut(NamedTuple):
    """The suite gives up."""

    key: str
    reason: str


Token = Result | Version | Plan | Header | BailOut


def token(text: str) -> Token | None:
    """What a line without its prefixes is; None for a diagnostic line and all others."""
    match = _LINE.match(text)
    if match is None:
        return None
    key, verdict, number, rest, version, plan, comment, header, reason = match.groups()
    key = key.expandtabs()
    if verdict:
        return Result(key, verdict == "ok", int(number), rest)
    if version:
        return Version(key)
    if plan:
        return Plan(key, int(plan), comment or "")
    if header:
        return Header(key, header.strip())
    return BailOut(key, reason.strip())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a result line says."""

    status: Status
    name: str
    directive: str
    reason: str


def outcome(result: Result) -> Outcome:
    """Its name, and how the case ended."""
    text = result.rest.strip()
    status = Status.PASSED if result.ok else Status.FAILED
    if "#" not in text:
        return Outcome(status, text.removeprefix("- "), "", "")
    comment = _COMMENT.search(text)
    if comment is None:
        return Outcome(status, text.removeprefix("- ").replace("\\#", "#"), "", "")
    name = text[: comment.start()].strip().removeprefix("-").strip().replace("\\#", "#")
    reason = comment[1].strip()
    match = _DIRECTIVE.match(reason)
    if match is None:
        return Outcome(status, name, "", reason)
    directive, reason = match[1].upper(), match[2].strip()
    # kselftest.h has the name of what was skipped behind the directive.
    return Outcome(_status(directive, ok=result.ok), name or reason, directive, reason)


def _status(directive: str, *, ok: bool) -> Status:
    match directive:
        case "SKIP":
            return Status.SKIPPED
        case "XFAIL":
            return Status.EXPECTED_FAILURE
        case "TODO" if not ok:
            return Status.EXPECTED_FAILURE
        case "TIMEOUT":
            return Status.TIMEOUT
    return Status.PASSED if ok else Status.FAILED


def skip_reason(plan: Plan) -> str:
    """Why a plan of no cases says that all is skipped; empty if it does not."""
    match = _DIRECTIVE.match(plan.comment.strip())
    return (match[2].strip() or "skipped") if match and plan.number == 0 else ""


def totals(text: str) -> list[Status]:
    """What the last line of a program of kselftest counts (kselftest.h); nothing in other lines."""
    match = _TOTALS.search(text)
    if match is None:
        return []
    counts = zip(_COUNTED, map(int, match.groups()), strict=True)
    return [status for status, count in counts for _ in range(min(count, _MOST_COUNTED))]


def is_diagnostic(text: str) -> bool:
    """Whether the suite itself says it."""
    words = text.lstrip()
    # The kernel's own "#PF: supervisor read access" is none.
    return words.startswith("# ") or words == "#"


def without_marks(text: str) -> str:
    """A diagnostic line without its ``#``."""
    match = _MARKS.match(text)
    return text[match.end() :] if match else text


def started(text: str) -> str:
    """The name of the case that a diagnostic line says to run; empty if it says nothing of it."""
    match = _STARTED.match(text)
    return (match[1] or match[2] or match[3]) if match else ""


def program(text: str) -> str:
    """The name of the program that kselftest's runner is about to start; empty for other lines."""
    match = _PROGRAM.match(text)
    return match[1] if match else ""


class Words(NamedTuple):
    """A line of a log, or a part of it, without prefixes."""

    text: str
    #: The kernel's time.
    time_s: float | None
    #: Whether the kernel printed it.
    stamped: bool


class LineReader:
    """Takes what CI systems, syslog and the kernel put in front off each line.

    A line of a program that a kernel message has cut in two is put together again.
    """

    def __init__(self) -> None:
        self._torn = ""
        #: Whether the kernel's lines have times.
        self._has_stamps = False
        #: What an unknown tool puts before each line, as seen before the version line.
        self._prefix: re.Pattern[str] | None = None

    def words(self, raw: bytes) -> list[Words]:
        """The messages on a line, in order: one, as a rule."""
        if b"\x1b" in raw:
            raw = without_escapes(raw.rstrip(b"\r\n\0 "))
        line = raw.decode("utf-8", "replace").rstrip("\r\n\0 ")
        if self._prefix is not None and (prefix := self._prefix.match(line)):
            line = line[prefix.end() :]
        stamp = _STAMP.match(line)
        if stamp is None:
            return self._foreign(line, raw)
        self._has_stamps = True
        text = line[stamp.end() :]
        if "[" in text and (second := _STAMP_WITHIN.search(text)):
            first = Words(text[: second.start()], float(stamp[1]), stamped=True)
            return [first, *self.words(text[second.start() :].encode())]
        return [Words(text, float(stamp[1]), stamped=True)]

    def _foreign(self, line: str, raw: bytes) -> list[Words]:
        """A line that does not begin with the kernel's time."""
        if self._has_stamps and (damaged := _DAMAGED_STAMP.match(line)):
            rest = line[damaged.end() :]
            if _LINE.match(rest):
                return [Words(rest, None, stamped=True)]
        if "[" in line and (stamp := _STAMP_WITHIN.search(line)):
            head = line[: stamp.start()]
            if is_beginning(head):
                self._torn += head
            return self.words(line[stamp.start() :].encode())
        torn, self._torn = self._torn, ""
        if _LINE.match(line):
            return [Words(text, None, stamped=False) for text in (torn, line) if text]
        if torn:
            return [Words(torn + line, None, stamped=False)]
        if behind := _VERSION_BEHIND.match(line):
            self._learn(behind[1])
        kernel_line = parse(line.encode() if line else raw, 0, 0, 0)
        return [Words(self._without_prefix(kernel_line.text), None, kernel_line.stamped)]

    def _learn(self, prefix: str) -> None:
        """Remember what stands before a version line: digits and spaces in it may change."""
        shape = "".join(
            r"[\d ]" if char.isdigit() or char == " " else re.escape(char) for char in prefix
        )
        self._prefix = re.compile(shape)

    def _without_prefix(self, text: str) -> str:
        prefix = self._prefix.match(text) if self._prefix else None
        return text[prefix.end() :] if prefix else text


def is_beginning(text: str) -> bool:
    """Whether a line of KTAP may begin so."""
    words = text.lstrip(" \t")
    if words.startswith("#"):
        return True
    return any(words.startswith(each) or each.startswith(words) for each in _BEGINNINGS)
