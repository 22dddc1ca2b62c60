"""The checksums that a guest can compute with what it has."""

from __future__ import annotations

import hashlib
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
