"""All that a serial line said so far: every byte and when it came, lines, crashes."""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_right
from pathlib import Path

from kboot.console.crashes import CrashLog, CrashScanner
from kboot.console.echo import EchoFilter
from kboot.console.text import Line, LineSplitter, RawLine, normalise
from kboot.errors import InfraError


class Record:
    """Every byte of a serial line, counted from 0.

    The newest bytes are kept in memory. With a `directory`, all of them go to ``serial.log`` as
    they came, and their times to ``serial.timing``, in the classic format of util-linux's
    scriptreplay: a line ``<seconds since the last one> <bytes>`` for each piece that was read.
    """

    #: Bytes kept in memory; up to twice as many between two trims.
    MEMORY_BYTES = 32 << 20

    def __init__(self, directory: Path | None, now: float) -> None:
        self._memory = bytearray()
        self._dropped = 0
        self._last = now
        self._files = contextlib.ExitStack()
        self._log = self._timing = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a killed run saw last is what its reader wants to know first.
            open_file = self._files.enter_context
            self._log = open_file((directory / "serial.log").open("wb", buffering=0))
            self._timing = open_file((directory / "serial.timing").open("wb", buffering=0))

    @property
    def size(self) -> int:
        """Bytes recorded so far."""
        return self._dropped + len(self._memory)

    @property
    def start(self) -> int:
        """The position of the oldest byte in memory."""
        return self._dropped

    def append(self, data: bytes, now: float) -> None:
        """Add bytes that came at `now`, monotonic seconds. `InfraError` when the disk is full."""
        self._memory += data
        if len(self._memory) > 2 * self.MEMORY_BYTES:
            excess = len(self._memory) - self.MEMORY_BYTES
            del self._memory[:excess]
            self._dropped += excess
        if self._log is not None and self._timing is not None:
            try:
                self._log.write(data)
                self._timing.write(b"%.6f %d\n" % (now - self._last, len(data)))
            except OSError as error:
                raise InfraError(f"{self._log.name}: {error.strerror}; make room there") from error
        self._last = now

    def read(self, start: int, end: int | None = None) -> bytes:
        """The bytes from `start` up to `end`, as far as they are still in memory."""
        last = self.size if end is None else end
        return bytes(self._memory[max(0, start - self._dropped) : max(0, last - self._dropped)])

    def close(self) -> None:
        """Close the files. The memory can still be read."""
        self._files.close()
        self._log = self._timing = None


class ConsoleLog:
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
