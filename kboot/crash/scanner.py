"""The streaming scanner: bytes in, events out."""

from __future__ import annotations

import re

from kboot.crash import grammar, resets
from kboot.crash.catalogue import FILTER
from kboot.crash.lines import KernelLine, parse
from kboot.crash.model import CrashKind, CrashReport, Event, Opened
from kboot.crash.report import Draft, build
from kboot.crash.resets import ResetWatch
from kboot.crash.rules import Rule
from kboot.crash.triggers import find

#: Every line that begins a report, or that `ResetWatch` wants, contains one of these.
_LITERALS = FILTER + resets.LITERALS
_CANDIDATE = re.compile(b"|".join(re.escape(literal) for literal in _LITERALS))

#: A longer line is read by its first and last bytes only: nothing the kernel prints comes near.
_LONG_LINE = 16384
_LINE_PART = 4096
#: Lines of one report; a stall on a big machine dumps every CPU.
_MAX_LINES = 2500
#: Lines in a row that belong to no report: it is over.
_MAX_FOREIGN = 25
#: A first line that needs a trace must get it within this many lines.
_TRACE_WITHIN = 15
#: A panic this many lines after a report may be its consequence.
_CHAIN_LINES = 60
_RESET = Rule(
    kind=CrashKind.UNEXPECTED_RESET, anchor="", pattern=re.compile(r".*"), label="unexpected reset"
)


class Scanner:
    """Finds crash reports in the console's bytes, which may come in pieces of any size.

    No input or output, no clock, no threads: the events depend on the bytes alone (and on where
    `quiet` and `expect_reset` are called).
    """

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._partial_size = 0
        self._line = 0
        self._offset = 0
        self._open: list[Draft] = []
        self._adopted: dict[str, Draft] = {}
        self._last: CrashReport | None = None
        self._stamped_log = False
        self._resets = ResetWatch()
        self._events: list[Event] = []

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes; return what they completed."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._keep(data)
        else:
            if self._partial_size:
                first = data.find(b"\n") + 1
                if self._partial_size + first > _LONG_LINE:
                    self._long_line(data[:first])
                    data, cut = data[first:], cut - first
                else:
                    data, cut = self._head + data, cut + len(self._head)
                self._head = self._tail = b""
                self._partial_size = 0
            self._region(data, cut)
            self._keep(data[cut:])
        return self._take()

    def quiet(self) -> list[Event]:
        """The line has been silent for a while: complete the open reports, and stay usable."""
        self._complete_all(cut=True)
        return self._take()

    def close(self) -> list[Event]:
        """The log has ended: complete everything."""
        if self._partial_size:
            self._long_line(b"")
            self._head = self._tail = b""
            self._partial_size = 0
        self._complete_all(cut=True)
        return self._take()

    def expect_reset(self) -> None:
        """The machine is about to be reset or rebooted: its next banner is no surprise."""
        self._resets.expect()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _keep(self, data: bytes) -> None:
        """Remember the beginning of a line; of a very long one, only its two ends."""
        self._partial_size += len(data)
        room = _LONG_LINE - len(self._head)
        self._head += data[:room]
        if len(data) > room:
            self._tail = (self._tail + data[room:])[-_LINE_PART:]

    def _long_line(self, end: bytes) -> None:
        """A line that was kept in parts (or any last line) is complete."""
        self._keep(end)
        size = self._partial_size
        raw = self._head
        if size > _LONG_LINE:
            ends = self._head + self._tail
            raw = ends[:_LINE_PART] + ends[-_LINE_PART:]
        candidate = _CANDIDATE.search(raw) is not None
        if self._open or candidate:
            self._one_line(raw, size, candidate=candidate)
        else:
            self._line += 1
            self._offset += size

    def _region(self, data: bytes, end: int) -> None:
        """Read whole lines: `data` up to `end`."""
        position = 0
        hit = -1
        if not any(literal in data for literal in _LITERALS):
            hit = end
        while position < end:
            if hit < position:
                found = _CANDIDATE.search(data, position, end)
                hit = end if found is None else found.start()
            if not self._open:
                start = end if hit == end else data.rfind(b"\n", position, hit) + 1 or position
                self._line += data.count(b"\n", position, start)
                self._offset += start - position
                position = start
                if position == end:
                    break
            line_end = data.find(b"\n", position) + 1
            raw = data[position:line_end]
            if len(raw) > _LONG_LINE:
                raw = raw[:_LINE_PART] + raw[-_LINE_PART:]
            self._one_line(raw, line_end - position, candidate=hit < line_end)
            position = line_end

    def _one_line(self, raw: bytes, size: int, *, candidate: bool) -> None:
        self._line += 1
        self._offset += size
        line = parse(raw)
        if candidate:
            begins, surprise = self._resets.seen(line, self._line, stamped_log=self._stamped_log)
            if begins:
                self._new_boot(line, size, surprise=surprise)
            trigger = find(line, stamped_log=self._stamped_log)
            if trigger is not None and not self._continues(trigger[0], line):
                self._begin(*trigger, line, size)
                self._stamped_log |= line.stamped
                return
        self._stamped_log |= line.stamped
        if self._open:
            self._extend(line)

    def _begin(self, rule: Rule, match: re.Match[str], line: KernelLine, size: int) -> None:
        """A report's first line."""
        is_panic = rule.is_panic
        for draft in self._of(line):
            if is_panic and not draft.rule.is_panic:
                # "Fatal exception", "panic_on_warn": the trace of the cause may still follow.
                draft.panicked = True
                self._add(draft, line)
            else:
                self._complete(draft, cut=False)
        draft = Draft(
            rule=rule,
            match=match,
            caller=line.caller,
            stamped=line.stamped,
            start_line=self._line,
            start_offset=self._offset - size,
            end_line=self._line,
            end_offset=self._offset,
            lines=[match.string[match.start() :]],
        )
        self._open.append(draft)
        draft.has_die = rule.is_die
        if not rule.needs_trace:
            self._announce(draft)

    def _announce(self, draft: Draft) -> None:
        draft.announced = True
        self._events.append(
            Opened(kind=draft.kind, line=draft.start_line, offset=draft.start_offset)
        )

    def _of(self, line: KernelLine) -> list[Draft]:
        """The open reports that a line by this caller may belong to."""
        own = [d for d in self._open if d.caller == line.caller and d.stamped <= line.stamped]
        adopter = self._adopted.get(line.caller)
        if adopter is not None and not own:
            return [adopter]
        return own

    def _continues(self, rule: Rule, line: KernelLine) -> bool:
        """Whether this first line is only the next line of a report that runs already."""
        return any(grammar.continues(draft, rule) for draft in self._of(line))

    def _extend(self, line: KernelLine) -> None:
        drafts = self._of(line)
        if not drafts and grammar.FOREIGN_CPU.match(line.text):
            drafts = [d for d in self._open if d.kind in grammar.COLLECTORS][-1:]
            if drafts:
                self._adopted[line.caller] = drafts[0]
        for draft in drafts:
            self._add(draft, line)

    def _add(self, draft: Draft, line: KernelLine) -> None:
        draft.lines.append(line.text)
        count = len(draft.lines)
        verdict = grammar.classify(draft, line.text)
        if verdict is not grammar.Verdict.FOREIGN:
            draft.kept = count
            draft.end_line = self._line
            draft.end_offset = self._offset
        if draft.has_trace and not draft.announced:
            self._announce(draft)
        if verdict is grammar.Verdict.END:
            draft.ended = True
            self._complete(draft, cut=False)
        elif count - draft.kept >= _MAX_FOREIGN or count >= _MAX_LINES:
            self._complete(draft, cut=False)
        elif not draft.announced and count >= _TRACE_WITHIN:
            self._open.remove(draft)

    def _complete(self, draft: Draft, *, cut: bool) -> None:
        """Turn a draft into a report, after the ones that may have caused it."""
        if draft not in self._open:
            return
        if draft.rule.is_panic:
            for other in [d for d in self._open if d.panicked]:
                other.ended |= draft.ended
                self._complete(other, cut=cut)
        self._open.remove(draft)
        for caller in [c for c, adopter in self._adopted.items() if adopter is draft]:
            del self._adopted[caller]
        if not draft.announced:
            return
        report = build(draft, cut=cut, caused_by=self._cause(draft))
        self._events.append(report)
        self._last = report

    def _cause(self, draft: Draft) -> CrashReport | None:
        last = self._last
        if last is None or not draft.rule.is_panic:
            return None
        near = draft.start_line - last.end_line <= _CHAIN_LINES
        return last if near and last.start_line < draft.start_line else None

    def _complete_all(self, *, cut: bool) -> None:
        for draft in list(self._open):
            self._complete(draft, cut=cut)
        self._adopted.clear()

    def _new_boot(self, line: KernelLine, size: int, *, surprise: bool) -> None:
        """A firmware or a kernel began anew."""
        died = bool(self._open) or (self._last is not None and self._last.fatal)
        self._complete_all(cut=True)
        self._last = None
        if not surprise or died:
            return
        words = line.text.strip()
        draft = Draft(
            rule=_RESET,
            match=re.match(r".*", words),  # type: ignore[arg-type]
            caller=line.caller,
            stamped=line.stamped,
            start_line=self._line,
            start_offset=self._offset - size,
            end_line=self._line,
            end_offset=self._offset,
            lines=[words],
        )
        self._open.append(draft)
        self._announce(draft)
        self._complete(draft, cut=False)
