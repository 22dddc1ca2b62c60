"""What a rule is: the first lines of one kind of report, and how it is titled."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kboot.crash.model import CrashKind

_FUNCTION = r"(?P<at>(?![0-9a-f]{8,16}\b)[A-Za-z_][\w.$]*)"
#: In front of it: "[<c0101234>]", in 4.15 and later at a boot's start "[<(ptrval)>]".
_ADDRESS = r"\[<(?:[0-9a-fx]+|\(_*ptrval_*\))>\]"
#: What kernels without symbols print instead.
_BARE = r"0x[0-9a-f]+\b(?:\(\))?"
#: A symbol, mostly with its offset, "func+0x12/0x34"; the group is `at`.
AT = rf"(?:{_ADDRESS} )*(?:{_FUNCTION}(?:\+0x|\(\)|\b)|{_BARE})"
#: The same where a mere word may stand as well.
AT_OFFSET = rf"(?:{_ADDRESS} )*(?:{_FUNCTION}(?:\+0x|\(\))|{_BARE})"
#: What older kernels put in front of a soft or hard lockup.
WATCHDOG = r"(?:NMI |Kernel )?(?:watchdog: )?(?:CPU\d+: )?"
RCU = r"(?:rcu(?:_\w+)?: )?"
#: Lockdep's first line: "[ INFO: ... ]" up to 4.10, "WARNING: ..." since.
LOCKDEP = r"(?:\[ )?(?:WARNING|INFO|BUG): "
PANIC = "Kernel panic"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """One kind of first line. A rule equals itself alone: that makes it a cheap key."""

    kind: CrashKind
    #: A literal in every line that `pattern` matches.
    anchor: str
    #: Matches the kernel's words from their start. Its groups ``at`` (the function), ``task``,
    #: ``pid``, ``cpu`` and ``file`` go to the report, the others to `label`.
    pattern: re.Pattern[str]
    #: The title without its "in function"; ``{name}`` stands for a group of the pattern.
    label: str
    #: A first line so general that only a register or stack dump after it makes it a report.
    needs_trace: bool = False
    #: The same, but only where the line carries no mark of the kernel.
    is_vague: bool = False
    #: The header of die(), which may follow another first line: "Oops: 0002 [#1]".
    is_die: bool = False
    #: A first line that is also printed for a program's own fault: only a header of die() behind it
    #: makes it a report.
    needs_die: bool = False

    @property
    def needs_its_place(self) -> bool:
        """Whether its words are so free that they count at the start of a message only."""
        return self.is_vague or (self.needs_trace and "what" in self.pattern.groupindex)

    @property
    def is_panic(self) -> bool:
        """Whether panic() printed it."""
        return self.anchor == PANIC


def row(
    kind: CrashKind,
    anchor: str,
    pattern: str,
    label: str,
    *,
    needs_trace: bool = False,
    is_vague: bool = False,
    is_die: bool = False,
    needs_die: bool = False,
) -> Rule:
    """A row of the catalogue."""
    return Rule(
        kind=kind,
        anchor=anchor,
        pattern=re.compile(pattern),
        label=label,
        needs_trace=needs_trace or needs_die,
        is_vague=is_vague,
        is_die=is_die,
        needs_die=needs_die,
    )


def traced(kind: CrashKind, anchor: str, pattern: str, label: str) -> Rule:
    """A row that only a trace behind its first line makes a report."""
    return row(kind, anchor, pattern, label, needs_trace=True)


def lockdep(kind: CrashKind, anchor: str, words: str, label: str) -> Rule:
    """A row for one of lockdep's first lines."""
    return row(kind, anchor, LOCKDEP + words, label)


def panic(kind: CrashKind, words: str, label: str) -> Rule:
    """A row for a panic whose message has `words` in it."""
    return row(kind, PANIC, rf"Kernel panic(?: - not syncing)?: (?=.*(?:{words}))", label)


def die(kind: CrashKind, words: str, label: str) -> Rule:
    """A row for the header of die(): on every architecture it ends with the oops' number.

    In front of that is an error code, if what it says of itself is not at its start. A word and a
    number alone are an entry in a list of changes: "check for overflow [#132]".
    """
    code = r": ?[0-9a-f]{1,16}(?: ilc:\d)? ?"
    named = rf"(?:Oops: |Internal error: |Oops - ){{1,8}}(?:{words})[^\[]*"
    pattern = rf"(?:{named}|(?:{words})[^\[]*{code})\[#\d{{1,4}}\](?!\()"
    return row(kind, "[#", pattern, label, is_die=True)
