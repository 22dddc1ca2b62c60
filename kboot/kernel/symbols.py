"""A kernel's symbol table: from System.map, a copy of /proc/kallsyms, or vmlinux."""

from __future__ import annotations

import logging
import mmap
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from kboot.cache import sha256_of
from kboot.errors import ConfigError
from kboot.kernel.elf import MAGIC, Image, Vmlinux
from kboot.kernel.kernel import Kernel

_log = logging.getLogger(__name__)

#: "ffffffff81000000 T _text", in kallsyms with "\t[module]" behind it.
_LINE = re.compile(
    r"([0-9a-f]{8}|[0-9a-f]{16}) ([A-Za-z?]) (\S+)(?:[ \t]+\[([\w-]+)\])?$", re.MULTILINE
)
_CODE = frozenset("tTwW")
#: Labels of assemblers, which kernels do not count either.
_LABELS = ("$", ".L", "__pi_.L")
_BASES = ("_text", "_stext")
#: A piece of System.map or kallsyms must have so many lines to be one.
_FEWEST = 3
#: A function is not larger than this; what is behind the last one belongs to nobody.
_LARGEST = 1 << 20


class Place(NamedTuple):
    """Where in which function an address is."""

    function: str
    offset: int
    #: Bytes up to the next symbol, as the kernel counts them.
    size: int
    module: str | None

    def __str__(self) -> str:
        """As a kernel prints it: ``func+0x1c/0x240 [module]``."""
        module = f" [{self.module}]" if self.module else ""
        return f"{self.function}+{self.offset:#x}/{self.size:#x}{module}"


class Symbol(NamedTuple):
    """A line of the table."""

    address: int
    name: str
    module: str | None
    is_code: bool
    is_weak: bool = False


class SymbolTable:
    """Finds the function that an address is in."""

    def __init__(self, symbols: Iterable[Symbol], name: str) -> None:
        """Sort the symbols. `ConfigError` if there are none with addresses."""
        self.name = name
        # Of several names for one address the kernel takes the strong one with few underscores.
        self.symbols = sorted(symbols, key=lambda s: (s.address, s.is_weak, _underscores(s.name)))
        code = [symbol.address for symbol in self.symbols if symbol.is_code]
        if not code or not code[-1]:
            raise ConfigError(
                f"{name}: all its addresses are zero; copy /proc/kallsyms as root"
                if code
                else f"{name}: there is no function in it; give System.map from the kernel's build"
            )
        self._addresses = [symbol.address for symbol in self.symbols]
        #: Where its code begins and ends, modules included.
        self.start, self.end = code[0], code[-1] + _LARGEST
        bases = [s.address for s in self.symbols if s.name in _BASES and s.module is None]
        #: Where the kernel's image begins.
        self.base = min(bases, default=self.start)
        self._sizes: dict[str, int | None] | None = None

    @property
    def in_upper_half(self) -> bool:
        """Whether its addresses are in the upper half of the address space; s390's are not."""
        return self.start >= 1 << 31

    def find(self, address: int, *, is_return: bool = False) -> Place | None:
        """The function at `address`; None if none is there.

        With `is_return` it is the one before, where a call of what never returns is its last word.
        """
        if is_return:
            place = self.find(address - 1)
            return place and place._replace(offset=place.offset + 1)
        after = bisect_right(self._addresses, address)
        if not after:
            return None
        first = self._addresses[after - 1]
        index = after - 1
        while index and self._addresses[index - 1] == first:
            index -= 1
        symbol = next((s for s in self.symbols[index:after] if s.is_code), None)
        size = self._size(after, first)
        if symbol is None or address - first >= size:
            return None
        return Place(symbol.name, address - first, size, symbol.module)

    def _size(self, after: int, first: int) -> int:
        following = self._addresses[after] if after < len(self._addresses) else first + _LARGEST
        return min(following - first, _LARGEST)

    def size_of(self, function: str) -> int | None:
        """Bytes of the kernel's own function of this name; None if there is not exactly one."""
        if self._sizes is None:
            self._sizes = {}
            for symbol in self.symbols:
                if symbol.is_code and symbol.module is None:
                    after = bisect_right(self._addresses, symbol.address)
                    size = self._size(after, symbol.address)
                    self._sizes[symbol.name] = None if symbol.name in self._sizes else size
        return self._sizes.get(function)


def _underscores(name: str) -> int:
    return len(name) - len(name.lstrip("_"))


def read_symbols(path: Path) -> SymbolTable:
    """The table in `path`. `ConfigError`: it cannot be read, or is none of the three."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image,
        ):
            found = _of_image(image, path) if image[:4] == MAGIC else _of_text(image, path)
            return SymbolTable(found, str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is empty") from error


def _of_image(image: Image, path: Path) -> list[Symbol]:
    return [
        Symbol(address, name, None, is_code=True)
        for address, name in Vmlinux(image, str(path)).symbols()
        if not name.startswith(_LABELS)
    ]


def _of_text(image: Image, path: Path) -> list[Symbol]:
    text = bytes(image[:]).decode("ascii", "replace")
    found = [
        Symbol(int(address, 16), name, module or None, kind in _CODE, kind in "wW")
        for address, kind, name, module in _LINE.findall(text)
        if not name.startswith(_LABELS)
    ]
    lines = text.count("\n")
    if "real System.map" in text[:200]:
        raise ConfigError(f"{path} is only a note that the real System.map is in another package")
    if len(found) < _FEWEST or len(found) * 2 < lines:
        raise ConfigError(
            f"{path} is neither a System.map, nor a copy of /proc/kallsyms, nor a vmlinux"
        )
    return found


class SymbolsOfKernel:
    """The symbols of whatever kernel runs, read when a report needs them.

    They stand in for a `SymbolTable` that knows nothing where the kernel came without symbols, or
    was built anew since.
    """

    def __init__(self, kernel: Callable[[], Kernel]) -> None:
        """`kernel` gives the kernel that runs."""
        self._kernel = kernel
        self._of: Kernel | None = None
        self._table: SymbolTable | None = None

    #: So are those of all architectures that machines have.
    in_upper_half = True

    @property
    def base(self) -> int:
        """Where the kernel's image begins; 0 if that is not known."""
        table = self._read()
        return table.base if table else 0

    def find(self, address: int, *, is_return: bool = False) -> Place | None:
        """As `SymbolTable.find`."""
        table = self._read()
        return table.find(address, is_return=is_return) if table else None

    def _read(self) -> SymbolTable | None:
        kernel = self._kernel()
        if kernel is not self._of:
            self._of, self._table = kernel, symbols_of(kernel)
        return self._table


def symbols_of(kernel: Kernel) -> SymbolTable | None:
    """The symbol table that came with the kernel; None if none did, or they are not its own."""
    path = kernel.system_map or kernel.vmlinux
    try:
        if path is None or sha256_of(kernel.image) != kernel.sha256:
            return None
        return read_symbols(path)
    except (ConfigError, OSError) as error:
        _log.info("no symbols: %s", error)
        return None
