"""The few facts kboot reads from ELF files: what a module or program is, a vmlinux's symbols."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from kboot import arch
from kboot.errors import ConfigError

MAGIC = b"\x7fELF"

_PT_INTERP = 3


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
        architecture=arch.name_of_elf(machine) or f"machine {machine}",
        _program_headers=(program_offset, sizes[0], sizes[1]),
        _section_headers=(section_offset, sizes[2], sizes[3]),
        _names_index=sizes[4],
    )


#: The bytes of an ELF file.
Image = bytes | mmap.mmap

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMTAB, _NOTE = 2, 7
_FUNCTION_TYPES = frozenset({0, 2})  # NOTYPE is what assembly leaves, FUNC what compilers write
_BANNER = re.compile(rb"Linux version (\d[^\s]+) ")


class _Section(NamedTuple):
    type: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A function in the image."""

    address: int
    #: Bytes up to the next symbol, as the kernel's own table has it.
    size: int


class Vmlinux:
    """An uncompressed kernel image with a symbol table (64-bit, little-endian)."""

    def __init__(self, image: Image, name: str) -> None:
        """Read the headers. `ConfigError` if it is no such image; `name` is for its words."""
        if bytes(image[:6]) != b"\x7fELF\x02\x01":
            raise ConfigError(f"{name} is not a 64-bit ELF file; --vmlinux wants the file vmlinux")
        self._image = image
        self._name = name
        try:
            self._sections = self._read_sections()
        except struct.error as error:
            raise ConfigError(f"{name} is cut short: its section headers are missing") from error

    def _read_sections(self) -> list[_Section]:
        (table,) = struct.unpack_from("<Q", self._image, 0x28)
        size, count = struct.unpack_from("<HH", self._image, 0x3A)
        sections = []
        for index in range(count):
            header = _SECTION_HEADER.unpack_from(self._image, table + index * size)
            sections.append(_Section(header[1], header[4], header[5], header[6]))
        return sections

    def functions(self, names: frozenset[str]) -> dict[str, list[Symbol]]:
        """The functions of these names; static ones may share a name."""
        return _with_sizes(self.symbols(), names)

    def symbols(self) -> list[tuple[int, str]]:
        """Address and name of every function. `ConfigError` if they were stripped off."""
        tables = [section for section in self._sections if section.type == _SYMTAB]
        if not tables:
            raise ConfigError(f"{self._name} has no symbol table; it was stripped")
        strings = self._sections[tables[0].link]
        addresses: list[tuple[int, str]] = []
        table = self._image[tables[0].offset : tables[0].offset + tables[0].size]
        for name, info, _, section, address, _ in _SYMBOL.iter_unpack(table):
            if info & 15 in _FUNCTION_TYPES and section:
                addresses.append((address, self._string(strings.offset + name)))
        return addresses

    def _string(self, offset: int) -> str:
        end = self._image.find(b"\0", offset)
        return bytes(self._image[offset:end]).decode("ascii", "replace")

    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal, or None if it was built without."""
        for section in self._sections:
            if section.type != _NOTE:
                continue
            note = bytes(self._image[section.offset : section.offset + section.size])
            # namesz 4, the size of the id, type NT_GNU_BUILD_ID (3), "GNU\0".
            found = re.search(rb"\x04\0\0\0(.)\0\0\0\x03\0\0\0GNU\0", note, re.DOTALL)
            if found is not None:
                return note[found.end() : found.end() + found[1][0]].hex()
        return None

    def release(self) -> str | None:
        """The kernel's release (``uname -r``), or None if the image does not tell."""
        found = _BANNER.search(self._image)
        return None if found is None else found[1].decode("ascii", "replace")


def _with_sizes(addresses: list[tuple[int, str]], names: frozenset[str]) -> dict[str, list[Symbol]]:
    """Sizes as kallsyms counts them: up to the next higher address."""
    order = sorted({address for address, _ in addresses})
    after = dict(pairwise(order))
    found: dict[str, list[Symbol]] = {}
    for address, name in addresses:
        if name in names:
            size = after.get(address, address) - address
            found.setdefault(name, []).append(Symbol(address, size))
    return found
