"""All that a serial line said so far: bytes, lines, crashes; shared by the reader and the waits."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from pathlib import Path

from kboot.console.crashes import CrashLog, CrashScanner
from kboot.console.echo import EchoFilter
from kboot.console.record import Record
from kboot.console.text import Line, LineSplitter, RawLine, normalise


class Tape:
    """The record of one console. Hold `changed` to look at it; it is notified of news."""

    #: Lines that can still be matched; up to twice as many between two trims.
    MEMORY_LINES = 200_000

    def __init__(self, directory: Path | None, scanner: CrashScanner) -> None:
        self.changed = threading.Condition()
        self.started = self.last_byte = time.monotonic()
        self.record = Record(directory, self.started)
        self.crashes = CrashLog(scanner)
        self.echo = EchoFilter()
        #: Why no more bytes come from the present stream; None while they may.
        self.ended: str | None = None
        #: What broke in our own reading: a full disk, a bug.
        self.failure: Exception | None = None
        self._splitter = LineSplitter()
        self._lines: list[Line] = []
        self._ends: list[int] = []
        self._scanned = 0

    def take(self, data: bytes) -> list[Line]:
        """Add bytes that came just now; return the lines that ended."""
        now = time.monotonic()
        with self.changed:
            self.last_byte = now
            self.record.append(data, now)
            lines = self._add(self._splitter.feed(data), now)
            self.changed.notify_all()
        return lines

    def end(self, reason: str) -> list[Line]:
        """The stream has ended: what was begun is complete now."""
        now = time.monotonic()
        with self.changed:
            lines = self._add(self._splitter.flush(), now)
            self.crashes.settle(now, self.silent_s, ended=True)
            self.ended = reason
            self.changed.notify_all()
        return lines

    def fail(self, error: Exception) -> None:
        """Our own side broke; every wait will say so."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    @property
    def unfinished(self) -> RawLine:
        """The line that has not ended yet, as it came."""
        return self._splitter.pending

    @property
    def silent_s(self) -> float:
        """Seconds since the last byte."""
        return time.monotonic() - self.last_byte

    @property
    def last_line(self) -> str:
        """The last line with anything on it, finished or not."""
        if text := normalise(self._splitter.pending.data).strip():
            return text
        return next((line.text for line in reversed(self._lines[-50:]) if line.text.strip()), "")

    def settle(self) -> None:
        """Complete a crash report that has been silent for long enough."""
        if self.crashes.open:
            now = time.monotonic()
            if self.silent_s >= 1:
                # The last words of a dying kernel need not end in a newline.
                self._scan(self._splitter.pending, now)
            self.crashes.settle(now, self.silent_s)

    def forgive(self) -> None:
        """What was taken so far is over, whatever it tells of."""
        self.crashes.settle(time.monotonic(), self.silent_s, ended=True)
        self.crashes.expect_reset()

    def lines_after(self, position: int, limit: int) -> list[Line]:
        """At most `limit` lines that end after byte `position`, echoes included."""
        first = bisect_right(self._ends, position)
        return self._lines[first : first + limit]

    def lines_before(self, position: int, limit: int) -> list[Line]:
        """At most `limit` lines, the last ones that end at or before byte `position`."""
        last = bisect_right(self._ends, position)
        return self._lines[max(0, last - limit) : last]

    def text_after(self, line: Line, position: int) -> str:
        """The text of `line`, without what came before byte `position`."""
        if position <= line.start:
            return line.text
        return normalise(self.record.read(position, line.end))

    def unfinished_after(self, position: int) -> str:
        """The line that has not ended yet, without what came before `position` and without echo."""
        pending = self._splitter.pending
        return self.echo.without(normalise(pending.data[max(0, position - pending.start) :]))

    def _add(self, raws: list[RawLine], now: float) -> list[Line]:
        """Add whole lines, and show them to the crash detector, with blanks for echoes."""
        lines = [self._line(raw, now) for raw in raws]
        shown = [
            b" " * (len(raw.data) - 1) + b"\n" if line.echo else raw.data
            for raw, line in zip(raws, lines, strict=True)
        ]
        if raws:
            self._scan(RawLine(b"".join(shown), raws[0].start), now)
        return lines

    def _line(self, raw: RawLine, now: float) -> Line:
        line = Line(
            text=normalise(raw.data),
            time_s=now,
            start=raw.start,
            end=raw.end,
            echo=self.echo.take(raw.data),
        )
        self._lines.append(line)
        self._ends.append(line.end)
        if len(self._lines) > 2 * self.MEMORY_LINES:
            del self._lines[: self.MEMORY_LINES]
            del self._ends[: self.MEMORY_LINES]
        return line

    def _scan(self, raw: RawLine, now: float) -> None:
        """Show the crash detector bytes, less what it saw of them as an unfinished line."""
        fresh = raw.data[max(0, self._scanned - raw.start) :]
        if fresh:
            self._scanned = raw.end
            self.crashes.feed(fresh, now)
