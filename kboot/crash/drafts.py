"""The reports that are being written: which line goes to which, and when each is complete."""

from __future__ import annotations

import re

from kboot.crash import grammar
from kboot.crash.lines import KernelLine
from kboot.crash.model import CrashReport, Event, Opened
from kboot.crash.report import Draft, build
from kboot.crash.rules import Rule

#: Lines of one report; a stall on a big machine dumps every CPU.
_MAX_LINES = 2500
#: Lines in a row that belong to no report: it is over.
_MAX_FOREIGN = 25
#: Lines of others in a row: whoever wrote the report has gone on to something else.
_MAX_SILENCE = 300
#: A first line that needs a trace must get it within this many lines.
_TRACE_WITHIN = 15
_NONE: list[Draft] = []
_OWN = grammar.Verdict.OWN
#: A panic this many lines after a report may be its consequence.
_CHAIN_LINES = 60


class Drafts:
    """All open reports of one console, by the context (task or CPU) that prints them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last: CrashReport | None = None
        self.open: list[Draft] = []
        #: The same reports by caller; a caller that only contributes to another's has it here too.
        self._by_caller: dict[str, list[Draft]] = {}

    def begin(self, rule: Rule, match: re.Match[str], line: KernelLine) -> None:
        """Take a report's first line, unless a report that runs already has it as its next one."""
        mine = self._of(line)
        # A log that two daemons write has every line twice.
        first = [match.string[match.start() :]]
        if any(draft.lines == first or grammar.continues(draft, rule) for draft in mine):
            self.extend(line)
            return
        for draft in list(mine):
            if rule.is_panic and not draft.rule.is_panic:
                # "Fatal exception", "panic_on_warn": the trace of the cause may still follow.
                draft.panicked = True
                self._add(draft, line)
            else:
                self._complete(draft, cut=False)
        self.start(Draft.begin(rule, match, line))

    def start(self, draft: Draft) -> None:
        """Open a report."""
        self.open.append(draft)
        self._by_caller.setdefault(draft.caller, []).append(draft)
        if not draft.rule.needs_trace:
            self._announce(draft)

    def extend(self, line: KernelLine) -> None:
        """Give a line to the reports it belongs to."""
        mine = self._by_caller.get(line.caller, _NONE)
        if not line.stamped:
            mine = self._of(line)
        if not mine and grammar.FOREIGN_CPU.match(line.text):
            collectors = [d for d in self.open if d.kind in grammar.COLLECTORS]
            mine = self._by_caller[line.caller] = collectors[-1:]
        for draft in mine if len(mine) < 2 else list(mine):
            self._add(draft, line)
        if not line.number % 64:
            self._complete_forgotten(line.number)

    def _complete_forgotten(self, number: int) -> None:
        for draft in list(self.open):
            if number - draft.end_line > _MAX_SILENCE:
                self._complete(draft, cut=False)

    def complete_all(self, *, cut: bool) -> None:
        """Complete every open report. `cut`: nothing more will come."""
        for draft in list(self.open):
            self._complete(draft, cut=cut)

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def _of(self, line: KernelLine) -> list[Draft]:
        mine = self._by_caller.get(line.caller, _NONE)
        if line.stamped or not mine:
            return mine
        # Where the kernel's lines are stamped, one without is a program's, unless it is indented
        # like the later lines of a record in dmesg's output.
        indented = line.text.startswith("        ")
        return [draft for draft in mine if indented or not draft.stamped]

    def _add(self, draft: Draft, line: KernelLine) -> None:
        text = line.text
        if draft.prefix is not None and (prefix := draft.prefix.match(text)) is not None:
            text = text[prefix.end() :]
        draft.lines.append(text)
        count = len(draft.lines)
        verdict = grammar.classify(draft, text)
        if verdict is _OWN:
            draft.kept = count
            draft.end_line = line.number
            draft.end_offset = line.end
            if draft.announced and count < _MAX_LINES:
                return
        if verdict is grammar.Verdict.END:
            draft.kept = count
            draft.end_line = line.number
            draft.end_offset = line.end
            draft.ended = True
            self._complete(draft, cut=False)
        elif not draft.announced:
            self._doubt(draft, count)
        elif count >= _MAX_LINES or count - draft.kept >= _MAX_FOREIGN:
            self._complete(draft, cut=False)

    def _doubt(self, draft: Draft, count: int) -> None:
        """A report that is none unless a trace follows."""
        if draft.has_trace:
            self._announce(draft)
        elif count >= _TRACE_WITHIN:
            self._forget(draft)

    def _announce(self, draft: Draft) -> None:
        draft.announced = True
        self.events.append(
            Opened(kind=draft.kind, line=draft.start_line, offset=draft.start_offset)
        )

    def _forget(self, draft: Draft) -> None:
        self.open.remove(draft)
        for caller, drafts in list(self._by_caller.items()):
            rest = [other for other in drafts if other is not draft]
            if rest:
                self._by_caller[caller] = rest
            else:
                del self._by_caller[caller]

    def _complete(self, draft: Draft, *, cut: bool) -> None:
        """Turn a draft into a report, after the one that may have caused it."""
        if draft not in self.open:
            return
        if draft.rule.is_panic:
            for other in [d for d in self.open if d.panicked]:
                other.ended |= draft.ended
                self._complete(other, cut=cut)
        self._forget(draft)
        if draft.announced:
            self.last = build(draft, cut=cut, caused_by=self._cause(draft))
            self.events.append(self.last)

    def _cause(self, draft: Draft) -> CrashReport | None:
        last = self.last
        if last is None or not draft.rule.is_panic:
            return None
        near = draft.start_line - last.end_line <= _CHAIN_LINES
        return last if near and last.start_line < draft.start_line else None
