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
      Function\ entered\ at\ \[<(?P<callee>{_HEX})>\]\ from\ \[<(?P<caller>{_HEX})>\]    # arm
    | (?P<stack>^[ \t]*(?:\[<?{_HEX}>?\]\ *)*(?:\?\ )?)0x(?P<back>{_HEX})\b(?![+/])
    | (?P<known>\[<{_HEX}>\]\ +)?(?<![\w+/])0x(?P<plain>{_HEX})\b(?![+/])
    | \[<(?P<alone>{_HEX})>\](?=[ \t]*$)
    """,
    re.VERBOSE | re.MULTILINE,
)
_OFFSET = re.compile(r"Kernel Offset: (?:0x([0-9a-f]+) from 0x([0-9a-f]+)|disabled)")
#: Between the address that arm64 calls the image's and the one of its first function.
_NEAR = 4 << 20


class Symbols(Protocol):
    """A kernel's symbol table: `kboot.kernel.symbols.SymbolTable`."""

    @property
    def base(self) -> int:
        """Where the kernel's image begins."""

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
        return 0 if abs(self._symbols.base - linked - offset) < min(_NEAR, offset) else offset

    def put(self, text: str, start: int) -> str:
        """The text with names. The report begins `start` bytes behind the log's start."""
        if "0x" not in text and "[<" not in text:
            return text
        move = self.move_told_by(text)
        if move is None:
            move = next((by for place, by in reversed(self.moves) if place <= start), 0)
        return _ADDRESS.sub(lambda match: self._replaced(match, move), text)

    def _replaced(self, match: re.Match[str], move: int) -> str:
        if match["callee"]:
            callee, caller = (self._name(match[group], move, is_return=True) for group in (1, 2))
            if not (callee and caller):
                return match[0]
            return f"[<{match[1]}>] ({callee}) from [<{match[2]}>] ({caller})"
        digits = match["back"] or match["plain"] or match["alone"]
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
            # The kernel's half of the address space.
            self.unnamed += address >= 1 << (63 if len(digits) > 8 else 31)
            return None
        self.named += 1
        return str(place)
