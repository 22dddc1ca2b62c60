"""The streaming scanner: bytes in, events out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from kboot.crash import resets
from kboot.crash.addresses import AddressNames
from kboot.crash.catalogue import ANY_DIE, FILTER, RULES
from kboot.crash.lines import Encoding, KernelLine, is_behind_words, parse
from kboot.crash.model import CrashKind, Event, Opened
from kboot.crash.open_reports import Drafts
from kboot.crash.report import Draft
from kboot.crash.resets import ResetWatch, Step
from kboot.crash.rule import Rule, row

#: Somebody quotes a kernel message: in a command, a script, a search, a log of tests.
_QUOTING = re.compile(
    r"""["'`]\s*(?:\[.*)?$|\b(?:echo|printf|print|grep|egrep|awk|sed|logger|cat|match|search|pattern|"""
    r"""waiting|looking|append|cmdline)\b""",
    re.IGNORECASE,
)
#: Words before a first line that are a quotation's, or a log's name for itself.
_TALKING = re.compile(
    r"\b(?:expect|wait|test|assert|run|case|(?:fix|avoid|prevent|solve|resolve|cause)(?:e?[sd]|ing)?)\b",
    re.IGNORECASE,
)
#: The same rule for a line whose origin is in doubt.
_DOUBTED = {rule: replace(rule, needs_trace=True) for rule in RULES}

_ANCHORS = tuple(dict.fromkeys(rule.anchor for rule in RULES))


def _applicable(words: str) -> Sequence[Rule]:
    """The rules whose anchor the line contains, in order of precedence."""
    return _rules_with(tuple([anchor for anchor in _ANCHORS if anchor in words]))


# Few of the combinations are seen, and mostly the same.
@lru_cache(maxsize=256)
def _rules_with(anchors: tuple[str, ...]) -> Sequence[Rule]:
    return [rule for rule in RULES if rule.anchor in anchors]


def _without_level(words: str) -> str:
    """The words without the level that kernels up to 3.5 print where a message goes on."""
    is_level = words[:1] == "<" and words[2:3] == ">" and words[1:2].isdigit()
    return words[3:] if is_level else words


def _find_behind_name(words: str, rules: Sequence[Rule]) -> tuple[Rule, re.Match[str]] | None:
    """A first line behind what some vendor puts between the kernel's time and its words."""
    for rule in rules:
        if rule.needs_its_place:
            continue
        match = rule.pattern.search(words)
        if match is not None and not words[: match.start()].endswith("[ end "):
            return _DOUBTED[rule], match
    return None


def _find_any_die(words: str) -> tuple[Rule, re.Match[str]] | None:
    """The header of die() with words that no rule knows."""
    match = ANY_DIE.pattern.match(words) if ANY_DIE.anchor in words else None
    return None if match is None or _QUOTING.search(words) else (ANY_DIE, match)


class TriggerFinder:
    """Knows of a console what it takes to doubt a line: whether its kernel stamps its lines."""

    def __init__(self) -> None:
        #: Whether this console's kernel marks its lines with time or caller.
        self.stamped_log = False
        self._quoted = ""

    def find(self, line: KernelLine) -> tuple[Rule, re.Match[str]] | None:
        """The rule whose first line this is, and its match; None for an ordinary line."""
        words = _without_level(line.text.strip())
        if not line.stamped and words in self._quoted:
            # What a command quoted, it prints: "# echo 'Kernel panic - not syncing: test'".
            return None
        rules = _applicable(words)
        for rule in rules:
            match = rule.pattern.match(words)
            if match is not None:
                doubted = not line.stamped and (self.stamped_log or rule.is_vague)
                return (_DOUBTED[rule] if doubted else rule), match
        if line.stamped:
            return _find_behind_name(words, rules) or _find_any_die(words)
        return self._find_glued(words, rules) or _find_any_die(words)

    def _find_glued(self, words: str, rules: Sequence[Rule]) -> tuple[Rule, re.Match[str]] | None:
        """A first line behind a prompt or a program's unfinished line."""
        for rule in rules:
            if rule.needs_its_place:
                continue
            match = rule.pattern.search(words)
            if match is None:
                continue
            before = words[: match.start()]
            if before.endswith("[ end "):
                return None
            if _QUOTING.search(before):
                self._quoted = words
                return None
            doubted = self.stamped_log or _TALKING.search(before)
            return (_DOUBTED[rule] if doubted else rule), match
        if _QUOTING.search(words):
            self._quoted = words
        return None


#: Every line that begins a report, or that `ResetWatch` wants, contains one of these.
_LITERALS = (
    *FILTER,
    b"(version",
    *(literal for literal in resets.LITERALS if b"(version" not in literal),
)


#: Letters by which a literal is found, in order of preference: those that some literal cannot do
#: without, then others that are rare in kernels' logs. Few letters, and rare ones, make few stops.
_TELLTALE = b"(vyhkgub" + b"jZWVQqzXHGLKFU#NODEMB"


def _any_of(literals: Sequence[bytes]) -> re.Pattern[bytes]:
    """A pattern for all of them, each found by a rare letter in it.

    A search by their first letters would stop at every second word, and take thrice as long.
    """
    around: dict[bytes, list[bytes]] = {}
    for literal in literals:
        telltale = next((letter for letter in _TELLTALE if letter in literal), literal[0])
        at = literal.index(telltale)
        before = b"(?<=%b)" % re.escape(literal[: at + 1]) if at else b""
        around.setdefault(literal[at : at + 1], []).append(before + re.escape(literal[at + 1 :]))
    parts = (b"%b(?:%b)" % (re.escape(at), b"|".join(rest)) for at, rest in around.items())
    return re.compile(b"|".join(parts))


_CANDIDATE = _any_of(_LITERALS)
#: Messages that are read of one line.
_MOST_MESSAGES = 8
#: A longer line is read by its first and last bytes only: nothing the kernel prints comes near.
_LONG_LINE = 16384
_LINE_PART = 4096
#: What is remembered of the log before a line, in bytes: some lines.
_RECENT = 2000
_RESET = row(CrashKind.UNEXPECTED_RESET, "", r".*", "unexpected reset")


class Scanner:
    """Finds crash reports in the console's bytes, which may come in pieces of any size.

    No input or output, no clock, no threads: the events depend on the bytes alone (and on where
    `quiet` and `expect_reset` are called).
    """

    def __init__(self, names: AddressNames | None = None) -> None:
        """`names` are for the addresses that a kernel without symbols prints."""
        self._head = b""
        self._tail = b""
        self._partial_size = 0
        self._line = 0
        self._offset = 0
        self._names = names
        self._drafts = Drafts(names)
        self._resets = ResetWatch()
        self._triggers = TriggerFinder()
        self._recent = b""
        #: The line before, if it was read: the same once more, time included, tells of two consoles
        #: that write to one line.
        self._last_raw = b""
        self._encoding = Encoding()

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes; return what they completed."""
        if not self._encoding.is_plain:
            data = self._encoding.to_utf8(data)
        self._take(data)
        return self._drafts.take()

    def _take(self, data: bytes) -> None:
        """Take bytes in UTF-8."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._keep(data)
            return
        if self._partial_size:
            first = data.find(b"\n") + 1
            if self._partial_size + first > _LONG_LINE:
                self._finish_partial(data[:first])
                data, cut = data[first:], cut - first
            else:
                data, cut = self._head + data, cut + len(self._head)
                self._drop_partial()
        self._region(data, cut)
        self._keep(data[cut:])

    def quiet(self) -> list[Event]:
        """The line has been silent for a while: complete the open reports, and stay usable."""
        self._drafts.complete_all(cut=True)
        return self._drafts.take()

    def close(self) -> list[Event]:
        """The log has ended: complete everything."""
        self._take(self._encoding.rest())
        if self._partial_size:
            self._finish_partial(b"")
            self._drafts.believe_cut()
        if self._resets.end() and self._resets.suspect is not None:
            self._report_reset(self._resets.suspect)
        self._drafts.complete_all(cut=True)
        return self._drafts.take()

    def expect_reset(self) -> None:
        """The machine is about to be reset or rebooted: its next banner is no surprise."""
        self._resets.expect()

    def _keep(self, data: bytes) -> None:
        """Remember the beginning of a line; of a very long one, only its two ends."""
        self._partial_size += len(data)
        room = _LONG_LINE - len(self._head)
        self._head += data[:room]
        if len(data) > room:
            self._tail = (self._tail + data[room:])[-_LINE_PART:]

    def _drop_partial(self) -> None:
        self._head = self._tail = b""
        self._partial_size = 0

    def _finish_partial(self, end: bytes) -> None:
        """The line that was kept is complete with `end`."""
        self._keep(end)
        raw, size = self._head, self._partial_size
        if size > _LONG_LINE:
            raw = _shortened(self._head + self._tail)
        self._drop_partial()
        candidate = _CANDIDATE.search(raw) is not None
        if self._wants_all or candidate:
            self._read(raw, size, candidate=candidate)
        else:
            self._skip(1, size)

    def _region(self, data: bytes, end: int) -> None:
        """Read whole lines: `data` up to `end`."""
        position = 0
        while position < end:
            found = _CANDIDATE.search(data, position, end)
            if found is None:
                self._calm(data, position, end)
                return
            start = data.rfind(b"\n", position, found.start()) + 1 or position
            self._calm(data, position, start)
            position = data.find(b"\n", start) + 1
            self._read(_shortened(data[start:position]), position - start, candidate=True)

    @property
    def _wants_all(self) -> bool:
        return bool(self._drafts.open) or self._resets.wants_all

    def _calm(self, data: bytes, position: int, end: int) -> None:
        """Read whole lines of which none begins a report: only what is under way wants them."""
        self._remember(data, position, end)
        drafts, resets = self._drafts, self._resets
        watching = resets.wants_all
        number, moved = self._line, self._offset - position
        while position < end and (drafts.open or watching):
            start, position = position, data.find(b"\n", position) + 1
            number += 1
            raw = data[start:position]
            if position - start > _LONG_LINE:
                raw = _shortened(raw)
            line = parse(raw, number, start + moved, position + moved)
            if line.stamped:
                self._triggers.stamped_log = True
            if watching:
                self._watch(line, raw)
                watching = resets.wants_all
            if raw == self._last_raw and line.stamped:
                drafts.again(line)
                continue
            self._last_raw = raw
            if line.glued:
                for message in _messages(line)[:-1]:
                    drafts.extend(message)
            drafts.extend(line)
        self._line, self._offset = number, position + moved
        if position < end:
            self._skip(data.count(b"\n", position, end), end - position)

    def _skip(self, lines: int, size: int) -> None:
        """Pass over lines that nobody wants."""
        self._line += lines
        self._offset += size
        self._last_raw = b""

    def _read(self, raw: bytes, size: int, *, candidate: bool) -> None:
        """Read one line. `candidate`: it contains one of the literals."""
        self._line += 1
        self._offset += size
        line = parse(raw, self._line, self._offset - size, self._offset)
        if candidate or self._resets.wants_all:
            self._watch(line, raw)
        self._remember(raw, 0, len(raw))
        if raw == self._last_raw and line.stamped:
            self._drafts.again(line)
            return
        self._last_raw = raw
        torn = candidate and line.stamped and is_behind_words(raw)
        for message in _messages(line):
            self._read_message(message, candidate=candidate, torn=torn)

    def _read_message(self, line: KernelLine, *, candidate: bool, torn: bool) -> None:
        trigger = None
        if candidate:
            if self._names is not None:
                line = replace(line, text=self._names.put(line.text, line.start))
            trigger = self._triggers.find(line)
        self._triggers.stamped_log |= line.stamped
        if trigger is not None:
            self._drafts.begin(*trigger, line, torn=torn)
        elif self._drafts.open:
            self._drafts.extend(line)

    def _remember(self, data: bytes, position: int, end: int) -> None:
        """Keep the end of what was read."""
        if end - position < _RECENT:
            self._recent = (self._recent + data[position:end])[-_RECENT:]
        else:
            self._recent = data[end - _RECENT : end]

    def _watch(self, line: KernelLine, raw: bytes) -> None:
        """Look whether a firmware or a kernel begins anew."""
        resets = self._resets
        step = resets.seen(
            line,
            raw,
            stamped_log=self._triggers.stamped_log,
            before=self._recent,
        )
        if step is Step.BEGINS:
            self._new_boot()
        elif step is Step.PROVEN and resets.proven is not None:
            self._report_reset(resets.proven)
        elif step is Step.SUSPECTED:
            last = self._drafts.last
            # A syslog is no console: its daemon dies before the kernel says goodbye.
            if self._drafts.open or (last is not None and last.fatal) or b"kernel: " in raw:
                resets.accept()
                self._new_boot()
            else:
                event = Opened(kind=_RESET.kind, line=line.number, offset=line.start)
                self._drafts.events.append(event)

    def _new_boot(self) -> None:
        """What the kernel before it was about to report is complete."""
        self._drafts.complete_all(cut=True)
        self._drafts.last = None

    def _report_reset(self, first: KernelLine) -> None:
        """The machine has begun anew by itself, with this line."""
        self._new_boot()
        match = _RESET.pattern.match(first.text.strip())
        if match is not None:
            self._drafts.start(Draft.begin(_RESET, match, first))
            self._drafts.complete_all(cut=False)


def _messages(line: KernelLine) -> Sequence[KernelLine]:
    """The messages in a line: more than one where the ends of lines were lost."""
    if not line.glued:
        return (line,)
    found = [line]
    while found[-1].glued and len(found) < _MOST_MESSAGES:
        before = parse(found[-1].glued.encode(), line.number, line.start, line.end)
        if not before.text.strip():
            break
        found.append(before)
    return found[::-1]


def _shortened(line: bytes) -> bytes:
    return line if len(line) <= _LONG_LINE else line[:_LINE_PART] + line[-_LINE_PART:]
