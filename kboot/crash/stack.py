"""Read the frames of a report: every shape a Linux architecture prints them in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kboot.crash.model import Frame

_NAME = r"[A-Za-z_][\w.$]*"

#: The instruction pointer and the link register, as x86, arm64, arm, riscv, powerpc, s390, mips write them.
_REGISTER = r"""
    (?P<register>
        RIP:\s(?:00[01][0-9a-f]:)?\s*
      | RIP\s\s?(?=\[<)
      | EIP:\s(?:00[0-7][0-9a-f]:)? | EIP\sis\sat\s | IP:\s
      | p?pc\s*:\s (?:[0-9a-f]+\s)? | PC\sis\sat\s | epc\s*:\s(?:[0-9a-f]+\s)?
      | NIP\s | Krnl\sPSW\s:\s[0-9a-f\s]+\(
      | (?P<link> lr\s:\s | LR\sis\sat\s | LR\s | ra\s*:\s(?:[0-9a-f]+\s)? )
    )
"""
_FRAME = re.compile(
    rf"""
    ^[ \t(]*
    {_REGISTER}?
    (?:\[<?\s*(?P<address>[0-9a-fA-Fx]+|inline)\s*>?\][ ]*)*
    (?P<guess>\?[ ]*)?
    \(?(?P<function>{_NAME})
    (?:
        \+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)
        (?:[ ]\[(?P<module>[\w-]+)(?:[ ][^\]]*)?\])?
        (?:[ ](?P<location>[\w./+-]+:\d+))?
      | [ ](?P<inline_location>[\w./+-]+\.[chSs]:\d+)(?:[ ]\[inline\])?
      | \)?[ ]from[ ]
    )
    """,
    re.VERBOSE | re.MULTILINE,
)
_SECTION = re.compile(
    r"^[ \t]*(?:(?P<trace>Call [Tt]race:?|Backtrace:|stack backtrace:)"
    r"|(?P<other>Allocated by|Freed by|allocated by|freed by|Uninit was|Local variable|Last potentially"
    r"|Second to last|Last call_rcu|INFO: Allocated|INFO: Freed|Allocated in|Freed in|NMI backtrace"
    r"|the existing dependency chain|-> #\d+|irq event stamp|hardirqs last|Showing all locks"
    r"|Kernel panic|Preemption disabled|to a (?:HARD|SOFT)IRQ|but this new dependency"
    r"|the dependencies between|write to 0x|read to 0x|read-write to 0x|race at unknown|backtrace))",
    re.MULTILINE,
)
_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm|lto_priv|localalias|__uniq)\b.*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A frame, where in the text it stands, and whether it is a register's."""

    frame: Frame
    position: int
    #: The program counter (``RIP:``, ``pc :``); the link register counts as an ordinary frame.
    is_pc: bool


def base_name(symbol: str) -> str:
    """A function's name as in its source: without what the compiler appended."""
    return _SUFFIX.sub("", symbol)


def entries(text: str) -> list[Entry]:
    """Every frame in `text`, in order."""
    return [_entry(match) for match in _FRAME.finditer(text)]


def _entry(match: re.Match[str]) -> Entry:
    get = match.group
    offset, size, address = get("offset"), get("size"), get("address")
    frame = Frame(
        function=base_name(get("function")),
        offset=None if offset is None else int(offset, 16),
        size=None if size is None else int(size, 16),
        module=get("module"),
        address=None if address in (None, "inline") else _address(address),
        reliable=get("guess") is None,
        location=get("location") or get("inline_location"),
    )
    is_pc = get("register") is not None and get("link") is None
    return Entry(frame=frame, position=match.start(), is_pc=is_pc)


def _address(digits: str) -> int | None:
    try:
        return int(digits, 16)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report that begins with a heading such as ``Call Trace:`` or ``Freed by task``."""

    heading: str
    start: int
    end: int


def sections(text: str) -> list[Section]:
    """The report cut at its headings; the first section has the heading ""."""
    marks = [(0, "")]
    marks += [(m.start(), "trace" if m["trace"] else m["other"]) for m in _SECTION.finditer(text)]
    ends = [start for start, _ in marks[1:]] + [len(text)]
    return [
        Section(heading=heading, start=start, end=end)
        for (start, heading), end in zip(marks, ends, strict=True)
    ]
