"""The kernel's symbols for ``kboot crash``: names for addresses, file and line for frames."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kboot import process
from kboot.crash import AddressNames, CrashReport, Frame
from kboot.crash.boots import BootFinder
from kboot.errors import ConfigError, KbootError
from kboot.kernel import read_kernel
from kboot.kernel.elf import MAGIC, Symbol, Vmlinux
from kboot.kernel.symbols import SymbolsOfKernel, SymbolTable, read_symbols

_RELEASE = re.compile(r"(?:Not tainted|Tainted: [A-Z ]+?) +(\d\S+) #\d+(?: .*?([0-9a-f]{40})\b)?")
#: How far a kernel was moved, which it only tells when it panics.
_MOVE = re.compile(rb"Kernel Offset: [^\r\n]{1,99}")
_PIECE = 1 << 20
_OVERLAP = 200
#: The kernel's own frames that must have another size in the table before it is another kernel's.
_ENOUGH = 3


class CrashSymbols:
    """A System.map, a copy of /proc/kallsyms, or a vmlinux."""

    def __init__(self, path: Path, table: SymbolTable, image: Vmlinux | None) -> None:
        self.path = path
        self.names = AddressNames(table)
        self._table = table
        self._image = image

    def note_moves(self, log: Path) -> None:
        """Find out how far the kernels in the log were moved from where they were linked to."""
        self.names.moves.clear()
        if not log.is_file():  # a pipe is read but once
            return
        boots, moves = _boots_and_moves(log)
        for place, text in moves:
            if (move := self.names.move_told_by(text)) is not None:
                boot = max((start for start in boots if start <= place), default=0)
                self.names.moves.append((boot, move))

    def require_same_kernel(self, report: CrashReport, log: str) -> None:
        """`ConfigError` if the report shows that another kernel wrote it, into `log`."""
        told = _RELEASE.search(report.text)
        mine = re.fullmatch(r"(?:System\.map|kallsyms|vmlinux)-(\d+\.\d+.*)", self.path.name)
        release = mine[1] if mine else None
        if self._image is not None:
            release, build_id = self._image.release(), self._image.build_id()
            if told is not None and told[2] and build_id and told[2] != build_id:
                raise ConfigError(f"{self.path} has build id {build_id}, but {log} is of {told[2]}")
        if told is not None and release is not None and told[1] != release:
            raise ConfigError(f"{self.path} is Linux {release}, but {log} is of Linux {told[1]}")
        self._require_same_sizes(report, log)

    def _require_same_sizes(self, report: CrashReport, log: str) -> None:
        """The functions' sizes, which a kernel prints, are hardly the same in two builds."""
        sizes = {f.symbol: f.size for f in report.frames if f.module is None and f.size}
        mine = {name: self._table.size_of(name) for name in sizes}
        known = [name for name, size in mine.items() if size is not None]
        other = [name for name in known if mine[name] != sizes[name]]
        if len(other) >= _ENOUGH and len(other) * 2 > len(known):
            name = other[0]
            raise ConfigError(
                f"{self.path} is of another kernel than {log}: {name} has {mine[name]:#x} bytes "
                f"there, and {sizes[name]:#x} in {log}"
            )

    def places(self, report: CrashReport) -> dict[Frame, str]:
        """``file:line`` of the kernel's own frames; nothing where there is no vmlinux."""
        if self._image is None:
            return {}
        mine = [f for f in report.frames if f.module is None and f.offset is not None]
        functions = self._image.functions(frozenset(frame.symbol for frame in mine))
        addresses = {frame: _address(frame, functions.get(frame.symbol, [])) for frame in mine}
        known = {frame: address for frame, address in addresses.items() if address is not None}
        if not known:
            return {}
        argv = ["addr2line", "-e", str(self.path), *(f"{at:#x}" for at in known.values())]
        lines = process.run(argv, timeout_s=600).stdout.decode(errors="replace").splitlines()
        places = zip(known, (line.partition(" (")[0] for line in lines), strict=False)
        return {frame: place for frame, place in places if not place.startswith("?")}

    def remark(self) -> str | None:
        """Why addresses in the reports have got no names, if that is so."""
        if self.names.named or not self.names.unnamed:
            return None
        return (
            f"{self.path} has no function at the log's addresses: the kernel was moved (KASLR), "
            "and only a panic tells by how much ('Kernel Offset:'); boot with nokaslr, or give a "
            "copy of /proc/kallsyms from that boot"
        )


@contextmanager
def open_symbols(path: Path) -> Iterator[CrashSymbols]:
    """The symbols in `path`. `ConfigError` if it cannot be read, or has none."""
    table = read_symbols(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        image = Vmlinux(content, str(path)) if content[:4] == MAGIC else None
        yield CrashSymbols(path, table, image)


def names_of_push(push: Mapping[str, Any] | None) -> AddressNames | None:
    """Names by the symbols that came with the one kernel that a machine has run.

    None where there have been several, which the machine's log does not tell apart, or where the
    kernel's file is another one by now.
    """
    if push is None or push["number"] != 1:
        return None
    try:
        kernel = read_kernel(Path(push["kernel"]))
    except KbootError:
        return None
    if kernel.symbols is None or kernel.sha256 != push["sha256"]:
        return None
    return AddressNames(SymbolsOfKernel(lambda: kernel))


def _address(frame: Frame, symbols: list[Symbol]) -> int | None:
    """Where the frame is in the image, if that is certain. KASLR does not matter to it."""
    if len(symbols) > 1:
        symbols = [symbol for symbol in symbols if symbol.size == frame.size]
    if len(symbols) != 1 or frame.offset is None:
        return None
    # A return address is behind its call, maybe on the next line of the source.
    return symbols[0].address + max(0, frame.offset - 1)


def _boots_and_moves(log: Path) -> tuple[list[int], list[tuple[int, str]]]:
    """Where each boot begins in the log, and place and words of each line that tells an offset."""
    boots = BootFinder()
    moves: list[tuple[int, str]] = []
    with log.open("rb") as file:
        before, start = b"", 0
        while piece := file.read(_PIECE):
            boots.feed(piece)
            data = before + piece
            # What stands across the border of two pieces is found in the next one.
            end = max(0, len(data) - _OVERLAP if len(piece) == _PIECE else len(data))
            moves += [
                (start + found.start(), found[0].decode(errors="replace"))
                for found in _MOVE.finditer(data)
                if found.start() < end
            ]
            start += end
            before = data[end:]
    return boots.starts, moves
