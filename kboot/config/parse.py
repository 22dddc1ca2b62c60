"""What a source of the configuration says, as a value, and what a setting says about itself."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError

Parse = Callable[[object, Path], object]

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def near(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """``; did you mean X?`` if something like `word` is known, else an empty text.

    The `prefix` they all begin with makes nothing alike.
    """
    # Only a mistake needs it, and every pytest run would pay for its import.
    import difflib  # noqa: PLC0415

    rests = [name.removeprefix(prefix) for name in known]
    found = difflib.get_close_matches(word.removeprefix(prefix), rests, n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def working_directory() -> Path:
    """Where we are. `ConfigError` if that has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError("the working directory was removed; cd to another one") from error


def text(value: object, _: Path) -> str:
    """One line of text."""
    if not isinstance(value, str) or "\n" in value or "\0" in value:
        raise ValueError("one line of text; in a file, put it in quotes")
    return value


def word(value: object, directory: Path) -> str:
    """One line of text that is not empty."""
    found = text(value, directory)
    if not found:
        raise ValueError("a text of at least one character")
    return found


def matching(pattern: str, what: str) -> Parse:
    """A text of this form, which is `what` in words."""

    def parse(value: object, directory: Path) -> str:
        found = text(value, directory)
        if not re.fullmatch(pattern, found):
            raise ValueError(what)
        return found

    return parse


def listed(pattern: str, what: str) -> Parse:
    """As `matching`, of words with commas between them, or of a list of these."""
    inner = matching(pattern, what)

    def parse(value: object, directory: Path) -> str:
        words = value if isinstance(value, list | tuple) else ()
        if words and all(isinstance(word, str) for word in words):
            value = ",".join(words)
        return str(inner(value, directory))

    return parse


def choice(choices: tuple[str, ...]) -> Parse:
    """One of `choices`."""

    def parse(value: object, _: Path) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}{near(str(value), choices)}")
        return str(value)

    return parse


def path(value: object, directory: Path) -> Path:
    """An absolute path; ``~`` is the home directory."""
    plain = word(str(value) if isinstance(value, Path) else value, directory)
    try:
        return directory / Path(plain).expanduser()
    except RuntimeError as error:
        raise ValueError(f"a path: {error}") from None


def search_path(value: object, directory: Path) -> str:
    """Absolute paths with colons between them, as they came."""
    parts = text(str(value) if isinstance(value, Path) else value, directory).split(os.pathsep)
    return os.pathsep.join(str(path(part, directory)) for part in parts if part)


def source(value: object, directory: Path) -> str:
    """A URL as it is, or an absolute path."""
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        return text(value, directory)
    return str(path(value, directory))


#: A system that is no file: one that kboot makes, or that is on one of the machine's disks.
_MADE = re.compile(r"tiny|disk:.+|debian(:[a-z][a-z0-9.-]*)?(\+[a-z0-9][a-z0-9+.,-]*)?")


def rootfs(value: object, directory: Path) -> str:
    """``tiny``, ``debian[:SUITE][+PACKAGE,...]``, ``disk:NAME``, a URL, or an absolute path."""
    if isinstance(value, str) and _MADE.fullmatch(value):
        return value
    if isinstance(value, str) and re.match(r"debian[:+]|disk:", value):
        raise ValueError(
            "a root file system; write debian[:SUITE][+PACKAGE,...] in small letters, or disk:NAME "
            f"(a file that is called so is ./{value})"
        )
    return source(value, directory)


def words(value: object, directory: Path) -> tuple[str, ...]:
    """A list as it is, or a text split as a shell would."""
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"a list of words as a shell reads it: {error}") from None
    if isinstance(value, list | tuple):
        return tuple(text(item, directory) for item in value)
    raise ValueError("a list of texts, or one text")


def paths(value: object, directory: Path) -> tuple[Path, ...]:
    """Absolute paths, from a list or a text split as a shell would."""
    listed = value if isinstance(value, list | tuple) else words(value, directory)
    return tuple(path(item, directory) for item in listed)


def modules(value: object, directory: Path) -> tuple[str, ...]:
    """Modules' names as they are, and the absolute paths of those that are files."""
    return tuple(
        str(path(item, directory)) if "/" in item or ".ko" in item else item
        for item in words(value, directory)
    )


def number(low: int, high: int) -> Parse:
    """A whole number from `low` to `high`."""

    def parse(value: object, _: Path) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
            value = int(value)
        # In Python, True is a number; in a configuration file it is a mistake.
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def memory_mib(value: object, _: Path) -> int:
    """A size in MiB, from ``512``, ``512M`` or ``2G``."""
    match = re.fullmatch(r"([0-9]{1,9})\s*(?:([MG])(?:i?B)?)?", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise ValueError("a size; write 512 (MiB), 512M or 2G")
    mib = int(match[1]) * (1024 if match[2] in {"G", "g"} else 1)
    # Below, no kernel of today gets as far as its init; above, a unit was surely mistaken.
    if not 64 <= mib <= 16 * 1024 * 1024:
        raise ValueError("a size from 64 MiB to 16 TiB; a number without a unit counts MiB")
    return mib


def page_mib(value: object, _: Path) -> int:
    """The size of a page in MiB, from ``2M`` or ``1G``; 0 for none."""
    match = re.fullmatch(r"([0-9]{1,6})\s*(?:([MG])(?:i?B)?)?", str(value).strip(), re.IGNORECASE)
    mib = int(match[1]) * (1024 if match[2] in {"G", "g"} else 1) if match else -1
    if mib < 0 or mib & (mib - 1):
        raise ValueError("the size of a huge page; write 2M or 1G, or 0 for none")
    return mib


def seconds(value: object, _: Path) -> float:
    """A time in seconds, from a number, ``90``, ``90s``, ``1.5m`` or ``1h``."""
    if isinstance(value, float) and 0 < value < 1e9:
        return value
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smh]?)", str(value).strip())
    if match is None or float(match[1]) == 0:
        raise ValueError("a time above 0; write 90 (seconds), 90s, 3m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def about(
    help_: str,
    metavar: str,
    parse_: Parse | None = None,
    *,
    name: str = "",
    choices: tuple[str, ...] = (),
    repeated: bool = False,
) -> dict[str, Any]:
    """See `kboot.config.Setting`. Without `parse_` it takes one of the choices."""
    return {
        "help": help_,
        "metavar": metavar,
        "parse": parse_ or choice(choices),
        "name": name,
        "choices": choices,
        "repeated": repeated,
    }
