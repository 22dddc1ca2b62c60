"""Collect one output stream of a command from pieces, until a checksum proves it complete."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from kboot.guest.checksum import Checksum
from kboot.guest.frames import Frame, Tag, plain_hex

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
