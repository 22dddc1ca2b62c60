"""Names for the bare addresses in a report, which kernels without symbols print.

Such kernels are built without CONFIG_KALLSYMS, and print ``0xffffffff81234567`` where others print
``func+0x1c/0x240``.
"""

from __future__ import annotations

import re
from typing import Protocol

_HEX = r"[0-9a-f]{8,16}"
_ADDRESS = re.compile(
    rf"""
      Kernel\ Offset:\ .*
    | Function\ entered\ at\ \[<(?P<callee>{_HEX})>\]\ from\ \[<(?P<caller>{_HEX})>\]    # arm
    | (?P<stack>^[ \t]*(?:\[<?{_HEX}>?\]\ *)*(?:\?\ )?)0x(?P<back>{_HEX})\b(?![+/])
    | (?P<known>\[<{_HEX}>\]\ +)?(?<![\w+/])0x(?P<plain>{_HEX})\b(?![+/])
    | \[<(?P<alone>{_HEX})>\](?=[ \t]*$)
    """,
    re.VERBOSE | re.MULTILINE,
)
_OFFSET = re.compile(r"Kernel Offset: (?:0x([0-9a-f]+) from 0x([0-9a-f]+)|disabled)")


class Symbols(Protocol):
    """A kernel's symbol table: `kboot.kernel.symbols.SymbolTable`."""

    @property
    def base(self) -> int:
        """Where the kernel's image begins."""

    @property
    def in_upper_half(self) -> bool:
        """Whether its addresses are in the upper half of the address space, as of most kernels."""

    def find(self, address: int, *, is_return: bool = False) -> object | None:
        """What is at the address, which prints as a kernel prints it; None if that is not known."""


class AddressNames:
    """Puts names to the addresses in the text of reports."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        #: How far each kernel of the log was moved from where it was linked to (KASLR), by the
        #: place in the log from which on that holds.
        self.moves: list[tuple[int, int]] = []
        #: Addresses for which there was a name, and kernels' addresses for which there was none.
        self.named = self.unnamed = 0

    def move_told_by(self, text: str) -> int | None:
        """How far a kernel was moved, by the line ``Kernel Offset:`` in its panic, if it is there.

        A copy of /proc/kallsyms has the addresses of the kernel that was moved: then it is 0.
        """
        told = _OFFSET.search(text)
        if told is None or told[1] is None:
            return None if told is None else 0
        offset, linked = int(told[1], 16), int(told[2], 16)
        base = self._symbols.base
        return 0 if abs(base - linked - offset) < abs(base - linked) else offset

    def put(self, text: str, start: int) -> str:
        """The text with names. The report begins `start` bytes behind the log's start."""
        # Symbols may be read from a file only when they are asked for.
        if not any(self._is_kernels(match) for match in _ADDRESS.finditer(text)):
            return text
        move = self.move_told_by(text)
        if move is None:
            move = next((by for place, by in reversed(self.moves) if place <= start), 0)
        return _ADDRESS.sub(lambda match: self._replaced(match, move), text)

    def _is_kernels(self, match: re.Match[str]) -> bool:
        digits = match["callee"] or match["back"] or match["plain"] or match["alone"]
        return digits is not None and self._may_be_kernels(digits)

    def _may_be_kernels(self, digits: str) -> bool:
        """Whether the address is in the kernel's half, where there is one."""
        bits = 63 if len(digits) > 8 else 31
        return not self._symbols.in_upper_half or int(digits, 16) >> bits > 0

    def _replaced(self, match: re.Match[str], move: int) -> str:
        if match["callee"]:
            callee, caller = (self._name(match[group], move, is_return=True) for group in (1, 2))
            if not (callee and caller):
                return match[0]
            return f"[<{match[1]}>] ({callee}) from [<{match[2]}>] ({caller})"
        digits = match["back"] or match["plain"] or match["alone"]
        if digits is None:
            return match[0]
        name = self._name(digits, move, is_return=match["back"] is not None)
        if name is None:
            return match[0]
        before = match["stack"] or match["known"] or ""
        known = f"<{digits}>" in before or f"[{digits}]" in before
        if known:
            return f"{before}{name}"
        guess = "? " if before.endswith("? ") else ""
        return f"{before.removesuffix(guess)}[<{digits}>] {guess}{name}"

    def _name(self, digits: str, move: int, *, is_return: bool) -> str | None:
        address = int(digits, 16) - move
        place = self._symbols.find(address, is_return=is_return)
        if place is None:
            self.unnamed += self._may_be_kernels(digits)
            return None
        self.named += 1
        return str(place)
