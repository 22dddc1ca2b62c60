"""Read the frames of a report: every shape a Linux architecture prints them in."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from kboot.crash import rust_names
from kboot.crash.model import Frame

#: A name of C, on big-endian ppc64 behind a dot, or a path of Rust's, as newer kernels print it.
#: What follows is no part of a name, so that less of one need not be tried ("*+").
_NAME = r"\.?[A-Za-z_][\w.$]*+(?:::\w+)*+|<[\w:<>,&* ]{1,200}>(?:::\w+)+"

#: The instruction pointer and the link register, as the architectures write them.
_REGISTER = r"""
    (?P<register>
        RIP:\s(?:(?!0033|0023|002b)[0-9a-f]{4}:)?\s*
      | RIP\s\s?(?=\[<)
      | EIP:\s(?:00[0-7][0-9a-f]:)? | EIP\sis\sat\s | IP:\s
      | p?pc\s*:\s (?:[0-9a-f]+\s)? | (?:PC|pc)\sis\sat\s | epc\s*:\s(?:[0-9a-f]+\s)?
      | NIP\s | ERA:\s[0-9a-f]+\s | Krnl\sPSW\s:\s[0-9a-f\s]+\(
      | TPC:\s< | PC:\s(?=\[<) | PC:\s0x[0-9a-f]+\s             # sparc, m68k, csky
      | IAOQ\[0\]:\s                                           # parisc
      | (?P<link> lr\s:\s | (?:LR|PR|ra)\sis\sat\s | LR\s
        | LR:\s0x[0-9a-f]+\s | RP\(r2\):\s | ra\s*:\s(?:[0-9a-f]+\s)?
        | (?:RPC|I7):\s< )
    )
"""
#: Behind a line's end and not at its start (``^``): the end is looked for as a plain character, and
#: `entries` puts one in front of the text.
_FRAME = re.compile(
    rf"""
    \n[ \t(]*+
    (?:<{{1,2}}/?[A-Z\#]\w*>{{1,2}}[ \t]+)?    # <IRQ>, on the line of a frame up to 4.5
    {_REGISTER}?
    (?:\[<?\s*(?P<address>[0-9a-fA-Fx]+|inline|\(_*ptrval_*\))\s*>?\][ ]*)*
    (?P<guess>\?[ ]*)?
    (?::(?P<module_before>[\w-]+):)?                         # up to 2.6.25: ":dm_mod:dm_open"
    \(?(?P<function>{_NAME})
    (?:
        \+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)
        (?P<doubt>[ ]\(unreliable\))?                            # ppc's mark
        (?:[ ]\[(?P<module>[\w-]+)(?:[ ][^\]]*)?\])?
        (?:[ ](?P<location>[\w./+-]+:\d+))?
      | [ ](?P<inline_location>[\w./+-]+\.[chSs]:\d+)(?P<inlined>[ ]\[inline\])?
      | [ ]\((?P<decoded_location>[\w./+-]+:\d+)(?:[^)\n]*\)|$) # scripts/decode_stacktrace.sh
      | (?:[ ]\[[\w-]+\])?\)?[ ]from[ ]                      # arm
    )
    """,
    re.VERBOSE | re.MULTILINE,
)
#: Headings of stacks that the report is about, and of stacks that only explain it.
_SECTION = re.compile(
    r"\n[ \t]*(?:(?P<main>Call [Tt]race|Backtrace:|stack backtrace:|backtrace|CPU: \d+ "
    r"|Kernel panic|(?:read|write|read-write) to 0x|race at unknown|RIP: )"
    r"|(?P<side>[Aa]llocated by|[Ff]reed by|Allocated:|Freed:|Uninit was|Local variable"
    r"|Last potentially|page last (?:allocated|free)|page_owner|Second to last|Last call_rcu"
    r"|(?:INFO: )?(?:Allocated|Freed) in|NMI backtrace|the existing|-> #\d|Showing all locks"
    r"|Preemption disabled|to a (?:HARD|SOFT)IRQ|... which became|but this|the dependencies"
    r"|the (?:first|second) lock|\{[\w -]+\} state was|INITIAL USE))"
)
#: What compilers append: ".isra.0", ".cold", ".llvm.123", "$0123abcd..."; no name of C has a dot.
_SUFFIX = re.compile(r"(?<=\w)(?:\.|\$[0-9a-f]{8,}).*$")
#: A BPF program, by the hash of its code and its name.
_BPF_TAG = re.compile(r"(?<=^bpf_prog)_[0-9a-f]{16}(?=_|$)")
#: What they put in front of functions that are called indirectly.
_PADDING = re.compile(r"__(?:cfi|pfx)_(?!check|slowpath)(?=\w)")
#: The entries of a system call: SyS_read up to 4.16, since then __x64_sys_read, __se_sys_read, ...
_SYSTEM_CALL = re.compile(
    r"(?:__(?:x64|ia32|x32|arm64|s390x?|riscv|powerpc|loongarch|mips|do|se)_(?P<compat>compat_)?sys"
    r"|(?P<old_compat>compat_)?(?:SyS|C_SYSC|SYSC))_(?=[a-z])"
)
#: A part of a mangled name of C++ (or early Rust): its length, then itself.
_PART = re.compile(r"(\d+)(?=[A-Za-z_])")
_RUST_HASH = re.compile(r"h[0-9a-f]{16}")


class Entry(NamedTuple):
    """A frame, where in the text it stands, and whether it is a register's."""

    frame: Frame
    position: int
    #: The program counter (``RIP:``, ``pc :``); the link register counts as an ordinary frame.
    is_pc: bool
    #: The link register.
    is_link: bool
    #: A function that has become a part of the next frame's: only a symbolised log shows it.
    is_inlined: bool


def base_name(symbol: str) -> str:
    """A function's name as in its source: without what compilers and macros add to it.

    A system call is ``sys_read`` or ``compat_sys_read``, whatever the architecture calls it.
    """
    if "::" in symbol:
        return symbol
    name = _SUFFIX.sub("", symbol.removeprefix("."))
    if name.startswith("_Z"):
        return _demangled(name)
    if name.startswith("_R"):
        return rust_names.demangled(name) or name
    if name.startswith("bpf_prog_"):
        return _BPF_TAG.sub("", name)
    name = _PADDING.sub("", name, count=1) if name.startswith("__") else name
    entry = _SYSTEM_CALL.match(name)
    if entry is None:
        return name
    compat = entry["compat"] or entry["old_compat"] or ""
    return f"{compat}sys_{name[entry.end() :]}"


def _demangled(name: str) -> str:
    """The name in a symbol of C++, without its parameters; symbols beyond that as they are."""
    parts = []
    position = 3 if name.startswith("_ZN") else 2
    while part := _PART.match(name, position):
        position = part.end() + int(part[1])
        parts.append(name[part.end() : position])
        if not name.startswith("_ZN"):
            break
    if len(parts) > 1 and _RUST_HASH.fullmatch(parts[-1]):
        parts.pop()
    return "::".join(parts) or name


def entries(text: str) -> list[Entry]:
    """Every frame in `text`, the innermost first."""
    # With a line's end in front, a match begins where in `text` its line does.
    found = [_entry(match) for match in _FRAME.finditer("\n" + text)]
    for index, (link, pc) in enumerate(pairwise(found)):
        # loongarch shows the return address above the program counter.
        if link.is_link and pc.is_pc:
            found[index : index + 2] = pc, link
    return found


def _entry(match: re.Match[str]) -> Entry:
    frame, is_pc, is_link, is_inlined = _read(*match.groups())
    return Entry(frame, match.start(), is_pc, is_link, is_inlined)


# The reports of one kernel share most of their frames.
@lru_cache(maxsize=4096)
def _read(
    register: str | None,
    link: str | None,
    address: str | None,
    guess: str | None,
    module_before: str | None,
    symbol: str,
    offset: str | None,
    size: str | None,
    doubt: str | None,
    module: str | None,
    place: str | None,
    inline_place: str | None,
    inlined: str | None,
    decoded_place: str | None,
) -> tuple[Frame, bool, bool, bool]:
    """The frame in what `_FRAME` has found, and what else `Entry` tells of it."""
    frame = Frame(
        function=base_name(symbol),
        symbol=symbol,
        offset=int(offset, 16) if offset else None,
        size=int(size, 16) if size else None,
        module=module or module_before,
        address=_address(address) if address else None,
        reliable=guess is None and doubt is None,
        location=place or inline_place or decoded_place,
    )
    is_pc = register is not None and link is None
    return frame, is_pc, link is not None, inlined is not None or address == "inline"


def _address(digits: str) -> int | None:
    try:
        return int(digits, 16)
    except ValueError:
        return None


class Section(NamedTuple):
    """Where a part of a report begins, with a heading (``Call Trace:``, ``Freed by task``)."""

    start: int
    #: Whether its frames are of the stack that the report is about.
    is_main: bool


def sections(text: str) -> list[Section]:
    """The report's parts, in order and without gaps: each ends where the next one begins."""
    # With a line's end in front, as in `entries`.
    marks = _SECTION.finditer("\n" + text)
    return [Section(0, True), *(Section(mark.start(), mark["side"] is None) for mark in marks)]
