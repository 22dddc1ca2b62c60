"""Names of Rust's functions, which kernels print mangled: RFC 2603, "v0"."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

_BASIC_TYPES = dict(
    zip(
        "abcdefhijlmnopstuvxyz",
        [
            "i8",
            "bool",
            "char",
            "f64",
            "str",
            "f32",
            "u8",
            "isize",
            "usize",
            "i32",
            "u32",
            "i128",
            "u128",
            "_",
            "i16",
            "u16",
            "()",
            "...",
            "i64",
            "u64",
            "!",
        ],
        strict=True,
    )
)
_POINTERS = {"R": "&", "Q": "&mut ", "P": "*const ", "O": "*mut "}
_DIGITS = {
    digit: value
    for value, digit in enumerate("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
}
#: Paths and types in one symbol; what refers back to itself again and again is not a compiler's.
_MOST_PARTS = 150


@lru_cache(maxsize=1024)
def demangled(symbol: str) -> str | None:
    """The path in a symbol, such as ``<driver::Queue>::push``, without the crates' hashes.

    None for what is no such symbol.
    """
    if not symbol.startswith("_R"):
        return None
    try:
        return _Parser(symbol[2:]).path(is_type=False)
    except (IndexError, KeyError, ValueError):
        return None


class _Parser:
    """Reads a symbol from its start.

    Raises IndexError, KeyError or ValueError where it is wrong.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._parts = 0

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, letter: str) -> bool:
        """Whether the next letter is this one, which then is read."""
        found = self._text[self._at : self._at + 1] == letter
        self._at += found
        return found

    def _number(self) -> int:
        """A number to the base of 62, ended by an underscore."""
        if self._take("_"):
            return 0
        value = 0
        while (letter := self._next()) != "_":
            value = value * 62 + _DIGITS[letter]
        return value + 1

    def _disambiguator(self) -> int:
        return self._number() + 1 if self._take("s") else 0

    def _identifier(self) -> str:
        self._take("u")
        start = self._at
        while self._text[self._at].isdecimal():
            self._at += 1
        size = int(self._text[start : self._at])
        self._take("_")
        self._at += size
        if self._at > len(self._text):
            raise ValueError("cut short")
        return self._text[self._at - size : self._at]

    def path(self, *, is_type: bool) -> str:
        """A path; in a type its parameters come without ``::`` before them."""
        self._count()
        return self._path(self._next(), is_type=is_type)

    def _count(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise ValueError("too many parts")

    def _path(self, kind: str, *, is_type: bool) -> str:
        if kind == "C":
            self._disambiguator()
            return self._identifier()
        if kind in "MX":
            # Where the implementation stands in the source.
            self._disambiguator()
            self.path(is_type=False)
        if kind == "M":
            return f"<{self._type()}>"
        if kind in "XY":
            return f"<{self._type()} as {self.path(is_type=True)}>"
        if kind == "N":
            namespace = self._next()
            parent = self.path(is_type=is_type)
            number, name = self._disambiguator(), self._identifier()
            if namespace in "CS":
                word = "closure" if namespace == "C" else "shim"
                name = f"{{{word}{':' * bool(name)}{name}#{number}}}"
            return f"{parent}::{name}" if name else parent
        if kind == "I":
            generic = self.path(is_type=is_type)
            arguments = self._all(self._argument)
            return f"{generic}{'' if is_type else '::'}<{', '.join(filter(None, arguments))}>"
        return self._back(kind, lambda: self.path(is_type=is_type))

    def _all(self, one: Callable[[], str]) -> list[str]:
        """What `one` reads, until the letter E."""
        found = []
        while not self._take("E"):
            found.append(one())
        return found

    def _back(self, kind: str, read: Callable[[], str]) -> str:
        """What has been read before, at another place."""
        if kind != "B":
            raise ValueError(f"no such path: {kind}")
        start = self._at - 1
        place = self._number()
        if place >= start:
            raise ValueError("points forward")
        after, self._at = self._at, place
        found = read()
        self._at = after
        return found

    def _argument(self) -> str:
        if self._take("L"):
            self._number()
            return ""
        return self._constant() if self._take("K") else self._type()

    def _type(self) -> str:
        self._count()
        kind = self._next()
        if kind in _BASIC_TYPES:
            return _BASIC_TYPES[kind]
        if kind in _POINTERS:
            if kind in "RQ" and self._take("L"):
                self._number()
            return _POINTERS[kind] + self._type()
        if kind in "AS":
            return f"[{self._type()}{'; ' + self._constant() if kind == 'A' else ''}]"
        if kind == "T":
            return f"({', '.join(self._all(self._type))})"
        if kind in "FD":
            return self._function() if kind == "F" else self._dynamic()
        self._at -= 1
        return self._type_path()

    def _type_path(self) -> str:
        if self._text[self._at] != "B":
            return self.path(is_type=True)
        return self._back(self._next(), self._type)

    def _function(self) -> str:
        if self._take("G"):
            self._number()
        unsafe = "unsafe " if self._take("U") else ""
        if self._take("K") and not self._take("C"):
            self._identifier()
        arguments = ", ".join(self._all(self._type))
        result = self._type()
        return f"{unsafe}fn({arguments})" + (f" -> {result}" if result != "()" else "")

    def _dynamic(self) -> str:
        if self._take("G"):
            self._number()
        traits = self._all(self._trait)
        if self._take("L"):
            self._number()
        return f"dyn {' + '.join(traits)}"

    def _trait(self) -> str:
        name = self.path(is_type=True)
        while self._take("p"):
            self._identifier()
            self._type()
        return name

    def _constant(self) -> str:
        if self._take("p"):
            return "_"
        if self._text[self._at] == "B":
            return self._back(self._next(), self._constant)
        kind = self._type()
        sign = "-" if self._take("n") else ""
        digits = ""
        while (letter := self._next()) != "_":
            digits += letter
        value = int(digits or "0", 16)
        return str(bool(value)).lower() if kind == "bool" else f"{sign}{value}"
