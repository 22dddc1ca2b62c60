"""Serial bytes to lines of text: escape sequences, carriage returns, broken UTF-8.

Everything here is pure, and gives the same lines however the bytes were cut on their way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kboot.crash.lines import without_escapes

#: A line longer than this many bytes is cut: something that never ends its line (a progress bar, a
#: binary file) must not make the console look at ever more bytes.
LINE_LIMIT = 16384

_CONTROL = re.compile(r"[\x00-\x07\x0a-\x0c\x0e-\x1f\x7f]")
#: Control characters but tabs and newlines, and what reverses the direction of reading.
_UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line the console printed."""

    #: Without the newline, escape sequences and control characters.
    text: str
    #: Seconds on the monotonic clock when its last byte came.
    time_s: float
    #: Bytes of the record before it, and up to the end of it, newline included.
    start: int
    end: int
    #: It is the terminal repeating what we typed.
    echo: bool = False


def normalise(raw: bytes) -> str:
    """What a terminal would show for the bytes of one line."""
    text = without_escapes(raw.rstrip(b"\r\n")).decode(errors="replace")
    if "\r" in text or "\b" in text:
        text = _overwrite(text)
    return text if text.isprintable() else _CONTROL.sub("", text)


def printable(text: str) -> str:
    """What people can read of a text that a guest or a test has printed; lines stay lines."""
    if text.isprintable():
        return text
    plain = without_escapes(text.encode(errors="surrogatepass"))
    return _UNREADABLE.sub("", plain.decode(errors="surrogatepass"))


def _overwrite(text: str) -> str:
    """Apply carriage returns and backspaces: later characters replace the earlier ones."""
    cells: list[str] = []
    column = 0
    for run in re.split(r"([\r\b])", text):
        if run == "\r":
            column = 0
        elif run == "\b":
            column = max(0, column - 1)
        else:
            cells[column : column + len(run)] = run
            column += len(run)
    return "".join(cells)


@dataclass(frozen=True, slots=True)
class RawLine:
    """The bytes of one line, with its newline, and how many bytes came before it."""

    data: bytes
    start: int

    @property
    def end(self) -> int:
        """Bytes up to the end of the line."""
        return self.start + len(self.data)


class LineSplitter:
    """Cut a stream of bytes into lines, in time linear in its length."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._start = 0

    @property
    def pending(self) -> RawLine:
        """The line that has not ended yet; its data may be empty."""
        return RawLine(bytes(self._pending), self._start)

    def feed(self, data: bytes) -> list[RawLine]:
        """Take the next bytes; return the lines that ended."""
        lines: list[RawLine] = []
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._feed_piece(piece + b"\n", lines)
        self._feed_piece(rest, lines)
        return lines

    def flush(self) -> list[RawLine]:
        """End the pending line, if any: no more bytes will come for it."""
        lines: list[RawLine] = []
        if self._pending:
            self._end_line(lines)
        return lines

    def _feed_piece(self, piece: bytes, lines: list[RawLine]) -> None:
        """Take bytes with at most one newline, at their end."""
        while piece:
            room = LINE_LIMIT - len(self._pending)
            self._pending += piece[:room]
            piece = piece[room:]
            if self._pending.endswith(b"\n") or len(self._pending) == LINE_LIMIT:
                self._end_line(lines)

    def _end_line(self, lines: list[RawLine]) -> None:
        line = self.pending
        lines.append(line)
        self._start = line.end
        self._pending.clear()
