"""Choose the function to look at first.

The innermost frame is rarely the guilty one: reporters print the report, instrumentation finds the
error, and helpers (locks, memcpy, lists, allocators) only did what their caller asked for. The
first frame that no skip list of the report's kind names is the guilty one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from kboot.crash import skiplists
from kboot.crash.model import CrashKind
from kboot.crash.stack import Entry, sections

K = CrashKind

#: What the CPU was doing is all there is to these: whoever stands at the instruction pointer.
_FAULTS = frozenset({K.DIVIDE_ERROR, K.INVALID_OPCODE, K.DOUBLE_FAULT, K.UBSAN, K.KCSAN})
_SLEEPING = frozenset({K.HUNG_TASK, K.ATOMIC_SLEEP, K.INVALID_WAIT_CONTEXT, K.WORKQUEUE_LOCKUP})
_IDLE = frozenset({"do_idle", "cpu_startup_entry", "cpu_idle_loop", "rcu_gp_kthread"})
STALLED = frozenset({K.SOFT_LOCKUP, K.HARD_LOCKUP, K.RCU_STALL})


def _lists(kind: CrashKind) -> list[re.Pattern[str]]:
    chosen = [skiplists.REPORTERS, skiplists.LOCKS, skiplists.HELPERS]
    if kind not in _FAULTS | STALLED:
        chosen.append(skiplists.ALLOCATORS)
    if kind is K.MEMORY_LEAK:
        chosen.append(skiplists.CONTAINERS)
    if kind in _SLEEPING or kind in STALLED:
        chosen.append(skiplists.SLEEPERS)
    if kind in STALLED:
        chosen.append(skiplists.INTERRUPTS)
    return chosen


_LISTS = {kind: _lists(kind) for kind in CrashKind}


@lru_cache(maxsize=8192)
def _guilty(kind: CrashKind, function: str) -> bool:
    return not any(names.match(function) for names in _LISTS[kind])


def choose(
    kind: CrashKind, named: Sequence[str], entries: Sequence[Entry], text: str
) -> str | None:
    """The guilty function, or None when the report names none at all.

    `named` are the functions that the report's own first or lock lines tell, innermost first;
    `entries` are the frames in `text`.
    """
    for function in named:
        if function and _guilty(kind, function):
            return function
    ordered = [entry for entry in _main(kind, entries, text) if entry.frame.reliable]
    if not ordered:
        ordered = list(entries)
    if kind in STALLED and (busy := _busy(ordered)) is not None:
        return busy
    start = next((i for i, entry in enumerate(ordered) if entry.is_pc), 0)
    for entry in ordered[start:] + ordered[:start]:
        if _guilty(kind, entry.frame.function):
            return entry.frame.function
    rest = [*filter(None, named), *(entry.frame.function for entry in ordered[start:])]
    return next((name for name in rest if not skiplists.REPORTERS.match(name)), None)


def _busy(entries: Sequence[Entry]) -> str | None:
    """The first function at which a CPU was at work, among CPUs of which some were idle."""
    starts = [index for index, entry in enumerate(entries) if entry.is_pc]
    for start, end in pairwise([*starts, len(entries)]):
        functions = [entry.frame.function for entry in entries[start:end]]
        if not _IDLE.isdisjoint(functions):
            continue
        for function in functions:
            if _guilty(K.RCU_STALL, function):
                return function
    return None


def _main(kind: CrashKind, entries: Sequence[Entry], text: str) -> list[Entry]:
    """The frames of the stack that the report is about: not of who allocated or freed."""
    if kind in STALLED:
        return list(entries)
    main = [part for part in sections(text) if part.is_main]
    return [e for e in entries if any(part.start <= e.position < part.end for part in main)]
