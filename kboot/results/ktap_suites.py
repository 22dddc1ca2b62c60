"""The suites of one writer on a log, from the lines that are about them to cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kboot.crash import CrashReport
from kboot.results import ktap_lines
from kboot.results.cases import Case, Status, first_title
from kboot.results.ktap_lines import (
    BailOut,
    Header,
    Outcome,
    Plan,
    Result,
    Token,
    Version,
    Words,
    outcome,
)

#: So many lines are kept of what was printed in the time of one case.
_MOST_LINES = 1000
#: So many bytes of a name may be lost.
_MOST_LOST = 3
#: A larger plan is a line that was damaged.
_LARGEST_PLAN = 1_000_000
_NO_RESULT = "there is no result"
#: Why a case has no result whose machine began anew.
RESET = "the machine was reset"


@dataclass(slots=True)
class Level:
    """A suite that has begun and not ended; the outermost one is what a version line begins."""

    key: str
    #: None until its result tells.
    name: str | None = None
    plan: int | None = None
    #: Results so far.
    count: int = 0
    seen: set[int] = field(default_factory=set)
    #: Results of an earlier text of the same suite.
    earlier: int = 0
    #: Why it has no cases, as its plan says.
    skip_reason: str = ""
    #: Why it has given up.
    bail_out: str = ""
    #: What was printed between the case before and its own beginning.
    lines: list[str] = field(default_factory=list)
    start_line: int = 0
    #: Cases whose path has to wait for its name.
    held: list[tuple[dict[str, Any], tuple[str, ...]]] = field(default_factory=list)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is known of it but that it has begun."""
        return self.plan is None and not self.count and not self.earlier and self.name is None

    @property
    def missing(self) -> int:
        """How many planned cases have no result."""
        return 0 if self.plan is None else max(0, self.plan - self.count)

    @property
    def has_cases(self) -> bool:
        """Whether any of its cases has a result, or was planned and has none."""
        return bool(self.count or self.earlier)

    def next_number(self) -> int:
        """That of the case that has no result yet."""
        number = self.count + 1 if self.plan is None else 1
        while number in self.seen:
            number += 1
        return number

    def add(self, number: int) -> None:
        """One more result."""
        self.count += 1
        self.seen.add(number)


def _is_damaged(name: str, whole: str) -> bool:
    """Whether a name may be another one that has lost some bytes on the serial line."""
    left = iter(whole)
    return (
        len(whole) - _MOST_LOST <= len(name) < len(whole)
        and len(name) > _MOST_LOST
        and all(char in left for char in name)
    )


class Track:
    """The suites of one writer: the kernel, or the programs."""

    def __init__(self, completed: Callable[[Case], None], *, comments: bool) -> None:
        self._completed = completed
        self._comments = comments
        self.levels: list[Level] = []
        #: Since the last result.
        self._lines: list[str] = []
        self._reports: list[CrashReport] = []
        self._start_line = self._end_line = 0
        self._last_time_s: float | None = None
        #: Number of the last line that was about suites.
        self.last_line = 0
        #: What the case that ran died of, once it has.
        self._died_of = ""
        #: How it ended, if it has not crashed.
        self._cut_status: Status | None = None

    # ---------------------------------------------------------------------------- what is told

    @property
    def is_open(self) -> bool:
        """Whether suites have begun and not ended, as far as their plans tell."""
        return bool(self.levels) and (
            len(self.levels) > 1 or self.levels[0].plan is None or self.levels[0].missing > 0
        )

    @property
    def running(self) -> str:
        """The case that runs, as far as can be told; empty if none does."""
        if not self.is_open:
            return ""
        names = [level.name or "" for level in self.levels[1:]]
        level = self.levels[-1]
        if level.plan is None or level.missing:
            names.append(self._guess() or f"case {level.next_number()}")
        return "/".join(filter(None, names))

    def add_line(self, text: str, number: int) -> None:
        """A line that is not about suites."""
        if self.levels:
            self._start_line = self._start_line or number
            self._end_line = number
            if len(self._lines) < _MOST_LINES:
                self._lines.append(text)

    def add_report(self, report: CrashReport) -> None:
        """The kernel crashed, or warned, in the time of what runs."""
        self._reports.append(report)

    @property
    def is_dead(self) -> bool:
        """Whether the kernel died of a report in the time of what runs."""
        return any(report.fatal for report in self._reports)

    def _guess(self) -> str:
        for text in reversed(self._lines):
            if name := ktap_lines.started(text):
                return name
        return ""

    # ------------------------------------------------------------------------------ the tokens

    def take(self, token: Token, words: Words, number: int) -> bool:
        """A line about suites; False if it is none here, but something that was printed."""
        if "#" in token.key and not self._comments:
            return False
        token = self._realigned(token)
        known = any(level.key == token.key for level in self.levels)
        if "#" in token.key and not known and not isinstance(token, Version | Plan | Header):
            return False
        match token:
            case Result():
                taken = self._result(token, words, number)
            case Version():
                taken = self._version(token, number)
            case Plan():
                taken = self._plan(token, number)
            case Header():
                taken = self._header(token, number)
            case BailOut():
                taken = self._bail_out(token)
        if taken:
            self.last_line = number
            if words.time_s is not None:
                self._last_time_s = words.time_s
        return taken

    def _realigned(self, token: Token) -> Token:
        """As it was before its line lost some of its indentation: a serial line drops bytes."""
        keys = [level.key for level in self.levels]
        width = len(token.key)
        if not keys or token.key in keys or "#" in f"{token.key}{keys[-1]}":
            return token
        if len(keys[0]) < width < len(keys[-1]):
            # No suite is indented like this.
            return token._replace(key=next(key for key in keys if len(key) > width))
        level = self.levels[-1]
        begins = level.plan is None and not level.has_cases and len(keys) > 1
        if begins and isinstance(token, Header | Plan) and width - len(level.key) in (1, 3):
            # What has lost them is the line before; a suite in it is indented by an even number.
            level.key = token.key
        return token

    def _version(self, token: Version, number: int) -> bool:
        level = self._at(token.key)
        if level is not None and level.is_fresh:
            return True
        if level is not None and "#" in token.key and not level.missing:
            # One program after another, in the comments about one case.
            level.earlier, level.plan, level.count = level.earlier + level.count, None, 0
            level.seen.clear()
            return True
        self._end_deeper(len(token.key), inclusive=True)
        self._begin(token.key, number)
        return True

    def _header(self, token: Header, number: int) -> bool:
        level = self._at(token.key)
        if level is not None and level.is_fresh and len(self.levels) == 1 and token.key:
            # One suite alone, as debugfs has it: its result is less indented.
            self.levels.insert(0, Level(key="", start_line=number))
        elif level is None or not level.is_fresh or len(self.levels) == 1:
            self._end_deeper(len(token.key), inclusive=len(self.levels) > 1)
            if not self.levels:
                self._begin("", number)
            level = self._begin(token.key, number)
        level.name = token.name
        return True

    def _plan(self, token: Plan, number: int) -> bool:
        if token.number > _LARGEST_PLAN:
            return False
        level = self._at(token.key)
        if level is None:
            self._end_deeper(len(token.key))
            level = self._begin(token.key, number)
        elif level.plan is not None and len(self.levels) == 1 and not level.missing:
            self._end_deeper(len(token.key), inclusive=True)
            level = self._begin(token.key, number)
        if level.plan is None:
            level.plan = token.number
            level.skip_reason = ktap_lines.skip_reason(token)
        return True

    def _bail_out(self, token: BailOut) -> bool:
        if not self.levels:
            return False
        level = self._at(token.key) or self.levels[-1]
        level.bail_out = f"the suite gave up: {token.reason}" if token.reason else "it gave up"
        return True

    def _result(self, token: Result, words: Words, number: int) -> bool:
        if not self.levels and number == 1 and token.number != 1:
            # A log that was cut at its start: this may be the end of "not ok 2".
            return False
        said = outcome(token)
        child = self._end_deeper(len(token.key), said.name)
        level = self._level_of(token.key, number)
        if child and child.name and _is_damaged(said.name, child.name):
            said = replace(said, name=child.name)
        if (
            child is None
            and level.name
            and level.name == said.name
            and not level.missing
            and level.has_cases
            and len(self.levels) > 1
        ):
            # A suite whose result is not less indented than its cases.
            child = self.levels.pop()
            level = self.levels[-1]
        level.add(token.number)
        self._finish(level, token.number, said, words, number, child)
        return True

    def take_cut(self, token: Result, text: str, number: int) -> None:
        """The log ends in this line: that a case has ended is certain, and no more of it."""
        self.add_line(text, number)
        level = self._at(token.key)
        if level is not None and level.plan is None:
            case = level.next_number()
            level.add(case)
            said = Outcome(Status.NOT_RUN, "", "", "the log ends in the line of its result")
            self._finish(level, case, said, None, number, None)

    def _level_of(self, key: str, number: int) -> Level:
        level = self._at(key)
        return self._begin(key, number) if level is None else level

    # -------------------------------------------------------------------------------- the tree

    def _at(self, key: str) -> Level | None:
        """The innermost suite, if its lines begin so."""
        return self.levels[-1] if self.levels and self.levels[-1].key == key else None

    def _begin(self, key: str, number: int) -> Level:
        level = Level(key=key, lines=self._lines, start_line=self._start_line or number)
        if "#" in key:
            names = filter(None, map(ktap_lines.program, reversed(self._lines)))
            level.name = next(names, None)
        self._lines, self._start_line, self._end_line = [], 0, 0
        self.levels.append(level)
        return level

    def _end_deeper(
        self, width: int, name: str | None = None, *, inclusive: bool = False
    ) -> Level | None:
        """End the suites that are indented deeper than `width`, or so.

        The last of them is returned, for its result, if that has its name; the others have none.
        """
        child = None
        while self.levels and len(self.levels[-1].key) >= width + (not inclusive):
            if child is not None:
                self._end_without_result(child, _NO_RESULT)
            level = self.levels[-1]
            self._end_cases(level, level.bail_out or _NO_RESULT)
            child = self.levels.pop()
        if child is None:
            return None
        if name is not None and self._fits(child, name):
            return child
        self._end_without_result(child, _NO_RESULT)
        return None

    @staticmethod
    def _fits(child: Level, name: str) -> bool:
        if child.name is None or child.name == name or "#" in child.key:
            return True
        return _is_damaged(child.name, name) or _is_damaged(name, child.name)

    def _end_cases(self, level: Level, reason: str, *, is_cut: bool = False) -> None:
        """What was planned in the innermost suite and has no result."""
        running = bool(self._reports) or is_cut
        for status in self._only_counted(level):
            number = level.next_number()
            level.add(number)
            told = "the program has only counted it"
            self._emit({"status": status, "name": "", "number": number, "reason": told})
        for _ in range(level.missing):
            number = level.next_number()
            level.add(number)
            if running:
                self._finish(level, number, self._cut(reason), None, 0, None)
                running = False
                if self._died_of:
                    reason = f"{self._died_of}, in an earlier case"
            else:
                self._emit(
                    {"status": Status.NOT_RUN, "name": "", "number": number, "reason": reason}
                )

    def _only_counted(self, level: Level) -> list[Status]:
        """Cases of a suite that printed its totals, and no results (kselftest's kcmp_test)."""
        totals = filter(None, map(ktap_lines.totals, reversed(self._lines)))
        told = next(totals, []) if level.missing == level.plan else []
        return told if len(told) == level.plan else []

    def _cut(self, reason: str) -> Outcome:
        """How a case ended that ran when all ended."""
        title = first_title(self._reports)
        self._died_of = title
        if title:
            return Outcome(Status.CRASHED, self._guess(), "", title)
        status = Status.CRASHED if reason == RESET else self._cut_status or Status.NOT_RUN
        # All others never began.
        self._cut_status = None
        return Outcome(status, self._guess(), "", reason)

    def _end_without_result(self, level: Level, reason: str) -> None:
        """A suite, no longer among the levels, that has ended without a result of its own."""
        if not self.levels:
            self._end_outermost(level, reason)
            return
        number = self.levels[-1].next_number()
        self.levels[-1].add(number)
        cut = self._cut(reason)
        said = Outcome(cut.status, level.name or "", "", cut.reason)
        self._finish(self.levels[-1], number, said, None, 0, level)

    def _end_outermost(self, level: Level, reason: str) -> None:
        """All that a version line began has ended."""
        for fields, path in level.held:
            self._completed(Case(**fields, path=path))
        if level.skip_reason and not level.has_cases:
            fields = {"status": Status.SKIPPED, "directive": "SKIP", "reason": level.skip_reason}
            self._completed(Case(**fields, name="", number=1))
        elif (self._reports or self._cut_status) and level.plan is None:
            # Nobody can tell whether it had ended.
            cut = self._cut(reason)
            self._completed(
                Case(
                    status=cut.status,
                    name=cut.name,
                    number=level.next_number(),
                    suite=True,
                    reason=cut.reason,
                    **self._printed([]),
                )
            )
        elif not level.has_cases and level.plan is None:
            fields = {"status": Status.NOT_RUN, "reason": reason, **self._printed([])}
            self._completed(Case(**fields, name="", number=1, suite=True))
        self._forget()

    def end(self, reason: str, status: Status | None = None) -> None:
        """Nothing more comes. What ran has this `status`, if it has not crashed."""
        self._cut_status = status if self.is_open else None
        self._died_of = ""
        cut = True
        while self.levels:
            level = self.levels[-1]
            self._end_cases(level, level.bail_out or reason, is_cut=cut and not level.bail_out)
            cut = False
            reason = f"{self._died_of}, in an earlier case" if self._died_of else reason
            self.levels.pop()
            self._end_without_result(level, level.bail_out or reason)
        self._last_time_s = self._cut_status = None

    # ------------------------------------------------------------------------------- the cases

    def _finish(
        self,
        level: Level,
        number: int,
        said: Outcome,
        words: Words | None,
        line: int,
        child: Level | None,
    ) -> None:
        """A case, or a suite with the cases of `child`, has ended."""
        fields: dict[str, Any] = {"name": said.name, "number": number, "directive": said.directive}
        is_suite = child is not None and child.has_cases
        status, reason = said.status, said.reason
        # A suite that has no plan either may be a case that only began like one.
        if child and not is_suite and status is Status.PASSED and child.plan is not None:
            status = Status.SKIPPED if child.skip_reason else Status.EMPTY
            reason = child.skip_reason or reason
        fields |= {"status": status, "reason": reason, "suite": is_suite}
        fields["duration_s"] = None if is_suite else self._since_last(words)
        fields |= self._printed(
            child.lines if child else [], child.start_line if child else 0, line
        )
        if child is not None:
            self._name(child, said.name or child.name or f"case {number}")
        self._emit(fields)

    def _since_last(self, words: Words | None) -> float | None:
        if words is None or words.time_s is None or self._last_time_s is None:
            return None
        return round(max(0.0, words.time_s - self._last_time_s), 6)

    def _printed(self, before: list[str], start_line: int = 0, line: int = 0) -> dict[str, Any]:
        """What was printed in its time; it is nobody else's from now on."""
        start = start_line or self._start_line or line
        reports = tuple(self._reports)
        end = line or max(start, self._end_line)
        fields: dict[str, Any] = {"start_line": start, "end_line": end}
        if before or self._lines:
            lines = [*before, *self._lines]
            own: list[str] = []
            other: list[str] = []
            for text in lines:
                (own if ktap_lines.is_diagnostic(text) else other).append(text)
            fields["diagnostics"] = tuple(map(ktap_lines.without_marks, own))
            fields["messages"] = tuple(other)
        if reports:
            fields["reports"] = reports
        self._forget()
        return fields

    def _forget(self) -> None:
        self._lines, self._reports = [], []
        self._start_line = self._end_line = 0

    def _name(self, level: Level, name: str) -> None:
        """The name of a suite is known now; it is no longer among the levels."""
        held, level.held = level.held, []
        for fields, path in held:
            self._emit(fields, (name, *path))

    def _emit(self, fields: dict[str, Any], path: tuple[str, ...] = ()) -> None:
        """Hand a case out, as soon as all suites around it have names."""
        for level in reversed(self.levels[1:]):
            if level.name is None:
                level.held.append((fields, path))
                return
            path = (level.name, *path)
        self._completed(Case(**fields, path=path))
