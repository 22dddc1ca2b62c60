"""Frames: how the agent's answers survive kernel messages in their midst, proved by checksums."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import string
from dataclasses import dataclass
from enum import IntEnum


class Checksum(IntEnum):
    """The programs `agent.sh` knows, by the numbers it uses for them."""

    CKSUM = 1
    MD5SUM = 2

    def of(self, data: bytes) -> int:
        """The number that the agent computes for `data`."""
        if self is Checksum.CKSUM:
            return cksum(data)
        # 48 of the 128 bits, because shells calculate with 64 at most.
        return int(hashlib.md5(data, usedforsecurity=False).hexdigest()[:12], 16)

    def printed_for(self, data: bytes, output: bytes) -> bool:
        """Whether `output` is what the program prints for `data` on its standard input."""
        first, _, _ = output.partition(b" ")
        if self is Checksum.CKSUM:
            return first == str(cksum(data)).encode()
        return first == hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _table()


def cksum(data: bytes) -> int:
    """The checksum of POSIX ``cksum``: a CRC-32 over the data and its length."""
    crc = 0
    length = len(data)
    tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
    for chunk in (data, tail):
        for byte in chunk:
            crc = ((crc << 8) & 0xFFFFFFFF) ^ _TABLE[(crc >> 24) ^ byte]
    return crc ^ 0xFFFFFFFF


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
_BEGUN = re.compile(rb"(?P<frame>~\d+:\d{1,9}:[\w:+/=!@%.,-]*;?)(?:\r*\n)?")
#: At the end of what has come so far: it may become a frame, or more of one.
_UNDECIDED = re.compile(rb"~(?:\d+(?::(?:\d{1,9}(?::[\w:+/=!@%.,-]*;?\r*)?)?)?)?\Z")
#: More than a frame has.
_HELD_BYTES = 256
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


class FrameFilter:
    """A serial log on its way to people: takes the frames out, however the bytes are cut.

    A line of frames alone leaves nothing. What follows behind a message that came into the midst of
    a frame cannot be told from text.
    """

    def __init__(self) -> None:
        self._held = b""
        self._at_line_start = True

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the log; return what is to be shown of them now."""
        data = self._held + data
        held = _UNDECIDED.search(data, max(0, len(data) - _HELD_BYTES))
        end = held.start() if held else len(data)
        self._held = data[end:]
        return self._filter(data[:end])

    def flush(self) -> bytes:
        """The log has ended, or pauses: what is to be shown of the bytes held back so far."""
        held, self._held = self._held, b""
        return self._filter(held)

    def _filter(self, data: bytes) -> bytes:
        shown = bytearray()
        position = 0
        for frame in _BEGUN.finditer(data):
            self._show(shown, data[position : frame.start()])
            # The end of the line goes with the frame, unless something else is on the line.
            position = frame.end() if self._at_line_start else frame.end("frame")
        self._show(shown, data[position:])
        return bytes(shown)

    def _show(self, shown: bytearray, text: bytes) -> None:
        if text:
            shown += text
            self._at_line_start = text.endswith(b"\n")


def without_frames(text: str) -> str:
    """What people can read of lines of the console, as `FrameFilter`."""
    frames = FrameFilter()
    return (frames.feed(text.encode()) + frames.flush()).decode()


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


#: Bytes of output in a full frame, by encoding.
BASE64_BYTES = 57
HEX_BYTES = 16


@dataclass(frozen=True, slots=True)
class Extent:
    """What the guest says about a stream: how long it is, and its checksum."""

    checksum: int
    size: int


class Output:
    """One stream: the pieces that came, by their offset in bytes."""

    def __init__(self) -> None:
        self._clean: dict[int, bytes] = {}
        self._repaired: dict[int, bytes] = {}

    def take(self, frame: Frame, base: int) -> None:
        """Add a frame of a transfer that began at byte `base`."""
        try:
            if frame.tag in {Tag.STDOUT, Tag.STDERR}:
                data = base64.b64decode(frame.payload, validate=True)
                offset = base + (frame.index - 1) * BASE64_BYTES
            else:
                data = bytes.fromhex(plain_hex(frame.payload).decode())
                offset = base + (frame.index - 1) * HEX_BYTES
        except (binascii.Error, ValueError):
            return
        (self._repaired if frame.repaired else self._clean)[offset] = data

    def missing(self, size: int) -> list[tuple[int, int]]:
        """The ranges (offset, length) not there yet, of a stream of `size` bytes."""
        ranges: list[tuple[int, int]] = []
        position = 0
        for offset in sorted({*self._clean, *self._repaired}):
            if offset > position:
                ranges.append((position, min(offset, size) - position))
            position = max(position, offset + len(self._piece(offset)))
        if position < size:
            ranges.append((position, size - position))
        return [(offset, length) for offset, length in ranges if length > 0]

    def complete(self, extent: Extent, checksum: Checksum) -> bytes | None:
        """The stream, or None when something is missing or wrong.

        When it is wrong, pieces are forgotten: the doubtful ones, or all if there are none.
        """
        if self.missing(extent.size):
            return None
        data = self.so_far()[: extent.size]
        if extent.size == 0 or checksum.of(data) == extent.checksum:
            return data
        if not self._repaired:
            self._clean.clear()
        self._repaired.clear()
        return None

    def so_far(self) -> bytes:
        """What is there, from the beginning to the first gap."""
        data = bytearray()
        for offset in sorted({*self._clean, *self._repaired}):
            piece = self._piece(offset)
            if offset > len(data):
                break
            data += piece[len(data) - offset :]
        return bytes(data)

    def _piece(self, offset: int) -> bytes:
        clean, repaired = self._clean.get(offset, b""), self._repaired.get(offset, b"")
        return clean if len(clean) >= len(repaired) else repaired
