"""All that a serial line said so far: every byte and when it came, lines, crashes."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from bisect import bisect_right
from pathlib import Path

from kboot.console.crashes import CrashLog, CrashScanner
from kboot.console.echo import EchoFilter
from kboot.console.text import Line, LineSplitter, RawLine, normalise
from kboot.errors import InfraError
from kboot.log import logger

#: Bytes written at once.
_PIECE = 1 << 20


class Record:
    """Every byte of a serial line, counted from 0.

    The newest bytes are kept in memory. With a `directory`, all of them go to ``serial.log`` as
    they came, and their times to ``serial.timing``, in the classic format of util-linux's
    scriptreplay: a line ``<seconds since the last one> <bytes>`` for each piece that was read.

    While the disk is full, memory goes on, and what is not in the file yet is written as soon as
    there is room. What memory has dropped by then is missing: the file says so in its place.
    """

    #: Bytes kept in memory; up to twice as many between two trims.
    MEMORY_BYTES = 32 << 20

    def __init__(self, directory: Path | None, now: float) -> None:
        self._memory = bytearray()
        self._dropped = 0
        self._log: RecordFile | None = None
        self._timing: RecordFile | None = None
        #: Up to which position and time the files tell.
        self._written = 0
        self._timed = (0, now)
        self._gaps: list[tuple[int, int]] = []
        self._full = False
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._log = RecordFile(directory / "serial.log")
            self._timing = RecordFile(directory / "serial.timing")

    @property
    def size(self) -> int:
        """Bytes recorded so far."""
        return self._dropped + len(self._memory)

    @property
    def start(self) -> int:
        """The position of the oldest byte in memory."""
        return self._dropped

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """The ranges of positions (from, to) that are not in the file."""
        if self._log is None or self._written == self.size:
            return tuple(self._gaps)
        return (*self._gaps, (self._written, self.size))

    def append(self, data: bytes, now: float) -> None:
        """Add bytes that came at `now`, monotonic seconds."""
        self._memory += data
        if len(self._memory) > 2 * self.MEMORY_BYTES:
            excess = len(self._memory) - self.MEMORY_BYTES
            del self._memory[:excess]
            self._dropped += excess
        self._write(now)

    def read(self, start: int, end: int | None = None) -> bytes:
        """The bytes from `start` up to `end`, as far as they are still in memory."""
        last = self.size if end is None else end
        return bytes(self._memory[max(0, start - self._dropped) : max(0, last - self._dropped)])

    def close(self) -> None:
        """Complete and close the files. The memory can still be read."""
        if self._log is None or self._timing is None:
            return
        self._write(time.monotonic())
        for start, end in self.missing:
            logger.warning("%s: bytes %d to %d are missing: disk full", self._log.path, start, end)
        self._gaps = list(self.missing)
        for file in (self._log, self._timing):
            file.close()
        self._log = self._timing = None

    def _write(self, now: float) -> None:
        """Bring the files up to date, as far as there is room for it."""
        if self._log is None or self._timing is None:
            return
        try:
            if self._written < self._dropped:
                self._skip(self._log)
            while self._written < self.size:
                piece = self.read(self._written, self._written + _PIECE)
                self._written += self._log.write(piece, self._written)
            position, moment = self._timed
            if position < self._written:
                line = b"%.6f %d\n" % (now - moment, self._written - position)
                self._timing.append(line)
                self._timed = (self._written, now)
        except OSError as error:
            if not self._full:
                logger.warning(
                    "%s: %s; make room there: what the console prints is kept in memory meanwhile",
                    self._log.path,
                    error.strerror,
                )
            self._full = True
        else:
            self._full = False

    def _skip(self, log: RecordFile) -> None:
        """Say in the file that bytes are missing, as far as memory has dropped them."""
        gap = (self._written, self._dropped)
        note = f"\n[kboot: {gap[1] - gap[0]} bytes are missing here: the disk was full]\n".encode()
        note = note[: gap[1] - gap[0]]
        while note:
            size = log.write(note, self._written)
            note = note[size:]
            self._written += size
        # The rest of the gap is a hole: positions in the file are those of the line.
        self._written = gap[1]
        self._gaps.append(gap)


class RecordFile:
    """A file that is written at known places, unbuffered: a killed run leaves all that it saw."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._size = 0

    def write(self, data: bytes, position: int) -> int:
        """Write as much of `data` as there is room for; how much. `OSError` if nothing."""
        size = os.pwrite(self._file.fileno(), data, position)
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return size

    def append(self, line: bytes) -> None:
        """Add a line at the end, whole or not at all. `OSError`."""
        done = 0
        while done < len(line):
            done += self.write(line[done:], self._size + done)
        self._size += len(line)

    def close(self) -> None:
        """Close it; half a line at its end goes."""
        with contextlib.suppress(OSError):  # a device
            if self._size:
                os.ftruncate(self._file.fileno(), self._size)
        self._file.close()


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
        #: What broke in our own reading: a bug.
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

    def begin_stream(self) -> None:
        """Bytes come again, from a new stream or the same one."""
        with self.changed:
            self.ended = self.failure = None

    def fail(self, error: Exception) -> None:
        """Our own side broke; every wait will say so."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def raise_failure(self) -> None:
        """Raise `InfraError` if our own side broke."""
        if self.failure is not None:
            raise InfraError(f"the console cannot be read: {self.failure!r}") from self.failure

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
