"""Frames: how the agent's answers survive kernel messages in their midst.

A frame is ``~NONCE:SEQUENCE:TAG:INDEX:LENGTH:PAYLOAD;`` and a newline. On a serial line that the
kernel also prints to, whole printk records (``[   12.345678] text\\r\\n``, or without a time) land
anywhere inside. Each field has a small alphabet, so the first character outside of it begins a
record, which ends with its line, and the frame goes on behind it. A record that begins with
characters of the alphabet shows by the length; if the frame was cut in one place only, the length
tells where. What stays doubtful is dropped, or marked, and asked for again.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from enum import IntEnum


class Tag(IntEnum):
    """What a frame carries."""

    ANSWER = 0
    STDOUT = 1
    STDERR = 2
    STDOUT_HEX = 3
    STDERR_HEX = 4
    CORRUPT = 8
    DONE = 9


_HEADER = b"0123456789:"
_CONTROL = b"0123456789.,-"
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_HEX = b"0123456789!@%+=_"
_ALPHABET = {
    Tag.ANSWER: _CONTROL,
    Tag.CORRUPT: _CONTROL,
    Tag.DONE: _CONTROL,
    Tag.STDOUT: _BASE64,
    Tag.STDERR: _BASE64,
    Tag.STDOUT_HEX: _HEX,
    Tag.STDERR_HEX: _HEX,
}
#: A frame, or its beginning, where something came in its midst.
_BEGUN = re.compile(r"~\d+:\d{1,9}:[\w:+/=!@%.,-]*;?")
_FROM_SIGNS = bytes.maketrans(b"!@%+=_", b"abcdef")

#: A frame whose end has not come in so many bytes is given up.
_PATIENCE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame as it was received."""

    sequence: int
    tag: Tag
    index: int
    payload: bytes
    #: It was put together around something else; only a checksum over the whole can prove it.
    repaired: bool = False


def without_frames(line: str) -> str:
    """What people can read of a line of the console; a frame leaves nothing.

    What follows behind a message that came into the midst of a frame cannot be told from text.
    """
    return _BEGUN.sub("", line)


def plain_hex(payload: bytes) -> bytes:
    """The hexadecimal digits of a payload in digits and signs."""
    return payload.translate(_FROM_SIGNS)


class FrameReader:
    """Bytes of the serial line in, frames of one session out; however the bytes are cut."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce.encode()
        self._marker = b"~" + self._nonce + b":"
        self._clean = re.compile(
            re.escape(self._marker) + rb"(\d{1,9}):(\d):(\d{1,9}):(\d{1,5}):([^;~\s]*);"
        )
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes; return the frames that are complete now."""
        self._buffer += data
        frames: list[Frame] = []
        position = 0
        while (start := self._buffer.find(b"~", position)) >= 0:
            frame, position = self._parse(start)
            if frame is not None:
                frames.append(frame)
            elif position == start:
                break
        del self._buffer[: start if start >= 0 else len(self._buffer)]
        return frames

    def _parse(self, start: int) -> tuple[Frame | None, int]:
        """The frame at `start`, and where to go on; at `start` again when more bytes are needed."""
        if match := self._clean.match(self._buffer, start):
            sequence, tag, index, length, payload = match.groups()
            if len(payload) == int(length) and (frame := _frame(sequence, tag, index, [payload])):
                return frame, match.end()
        return _Mender(self._buffer, start, self._marker).mend()


class _Mender:
    """Reads one frame around whatever was printed inside it."""

    def __init__(self, buffer: bytearray, start: int, marker: bytes) -> None:
        self._buffer = buffer
        self._start = start
        self._marker = marker
        self._header: list[bytes] = []
        self._field = bytearray()
        self._pieces: list[bytes] = []
        self._alphabet = _HEADER

    def mend(self) -> tuple[Frame | None, int]:
        """As `FrameReader._parse`."""
        buffer, position = self._buffer, self._start + 1
        while position < len(buffer):
            byte = buffer[position]
            if byte in self._alphabet:
                if not self._take(byte):
                    return None, self._start + 1
                position += 1
            elif byte == ord(";") and len(self._header) == 5:
                return self._finish(), position + 1
            elif byte == ord("~"):
                return None, position
            else:
                newline = buffer.find(b"\n", position)
                fresh = buffer.find(self._marker, position, newline if newline >= 0 else None)
                if fresh >= 0:
                    return None, fresh
                if newline < 0:
                    break
                position = newline + 1
                self._cut()
        if len(buffer) - self._start > _PATIENCE_BYTES:
            return None, self._start + 1
        return None, self._start

    def _take(self, byte: int) -> bool:
        """Add a byte to the present field; False when this is no frame of ours."""
        if len(self._header) == 5 or byte != ord(":"):
            self._field.append(byte)
            return len(self._header) == 5 or len(self._field) <= 9
        self._header.append(bytes(self._field))
        self._field.clear()
        if len(self._header) == 1:
            return self._header[0] == self._marker[1:-1]
        if len(self._header) == 5:
            tag = int(self._header[2] or b"7")
            if tag not in _ALPHABET or not all(self._header):
                return False
            self._alphabet = _ALPHABET[Tag(tag)]
        return True

    def _cut(self) -> None:
        """Note that something was printed here."""
        if len(self._header) == 5:
            self._pieces.append(bytes(self._field))
            self._field.clear()

    def _finish(self) -> Frame | None:
        _, sequence, tag, index, length = self._header
        pieces = fit([*self._pieces, bytes(self._field)], int(length))
        return None if pieces is None else _frame(sequence, tag, index, pieces)


def fit(pieces: list[bytes], length: int) -> list[bytes] | None:
    """Cut what was printed in between out of `pieces`, so that `length` bytes are left.

    None when there are too few bytes, or when they were cut in more than one place.
    """
    pieces = [piece for index, piece in enumerate(pieces) if piece or index == len(pieces) - 1]
    excess = sum(map(len, pieces)) - length
    if excess < 0:
        return None
    if excess == 0:
        return pieces
    head = length - len(pieces[-1])
    if len(pieces) > 1 and 0 <= head <= len(pieces[0]):
        return [pieces[0][:head], pieces[-1]]
    return None


def _frame(sequence: bytes, tag: bytes, index: bytes, pieces: list[bytes]) -> Frame | None:
    payload = b"".join(pieces)
    kind = int(tag)
    if kind not in _ALPHABET:
        return None
    alphabet = _ALPHABET[Tag(kind)]
    if payload.translate(None, alphabet):
        return None
    if alphabet is _CONTROL:
        first, _, second = payload.partition(b",")
        if first != second:
            return None
        payload = first
    return Frame(
        sequence=int(sequence),
        tag=Tag(kind),
        index=int(index),
        payload=payload,
        repaired=len(pieces) > 1,
    )
