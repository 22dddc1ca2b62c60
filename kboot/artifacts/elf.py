"""The few facts kboot reads from ELF files (kernel modules, busybox, vmlinux).

Format: System V ABI, chapters 4 and 5; little endian only, as are the machines kboot knows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"\x7fELF"

_PT_INTERP = 3
#: e_machine -> the architecture as ``uname -m`` says it.
_MACHINES = {3: "i686", 62: "x86_64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """A 64-bit little-endian ELF file in memory."""

    data: bytes
    #: As ``uname -m`` says it, or ``machine N`` for one that kboot does not know.
    architecture: str
    _program_headers: tuple[int, int, int]
    _section_headers: tuple[int, int, int]
    _names_index: int

    @property
    def is_static(self) -> bool:
        """Whether it runs without a dynamic loader."""
        kinds = (header[0] for header in self._table(self._program_headers, "<I"))
        return _PT_INTERP not in kinds

    def section(self, name: str) -> bytes | None:
        """The content of the section called `name`, or None if there is none."""
        headers = list(self._table(self._section_headers, "<IIQQQQ"))
        if self._names_index >= len(headers):
            return None
        names = self._content(headers[self._names_index])
        for header in headers:
            if names[header[0] :].split(b"\0", 1)[0] == name.encode():
                return self._content(header)
        return None

    def _content(self, section_header: tuple[int, ...]) -> bytes:
        offset, size = section_header[4:6]
        return self.data[offset : offset + size]

    def _table(self, where: tuple[int, int, int], form: str) -> list[tuple[int, ...]]:
        start, entry_size, count = where
        offsets = (start + entry_size * index for index in range(count))
        last = len(self.data) - struct.calcsize(form)
        return [struct.unpack_from(form, self.data, at) for at in offsets if at <= last]


def parse_elf(data: bytes) -> Elf | None:
    """Read the header of `data`; None if this is not a whole 64-bit little-endian ELF header."""
    if len(data) < 64 or data[:6] != MAGIC + b"\x02\x01":
        return None
    machine = struct.unpack_from("<H", data, 18)[0]
    program_offset, section_offset = struct.unpack_from("<QQ", data, 32)
    sizes = struct.unpack_from("<HHHHH", data, 54)
    return Elf(
        data=data,
        architecture=_MACHINES.get(machine, f"machine {machine}"),
        _program_headers=(program_offset, sizes[0], sizes[1]),
        _section_headers=(section_offset, sizes[2], sizes[3]),
        _names_index=sizes[4],
    )
