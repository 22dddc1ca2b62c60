"""Choose the function to look at first: not one of those that only report, or only pass on."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from kboot.crash import duties
from kboot.crash.model import CrashKind
from kboot.crash.stack import Entry, base_name, sections

K = CrashKind

_SYSTEM_CALL = re.compile(r"(?:compat_)?sys_[a-z]\w*$")
#: With which words a watchdog lets the kernel panic.
_PANIC_OF_STALL = re.compile(r"^.{0,99}not syncing: (?:softlockup|.*LOCKUP|RCU Stall)")
_STACK_USED_UP = re.compile(
    r"^.{0,99}not syncing: (?:.{0,20}[Kk]ernel stack overflow|corrupted stack end)"
)
#: What every fault of a program's page goes through.
_PROGRAMS_FAULT = "handle_mm_fault"
#: How far in the innermost frames a call by an instrument, or a raiser, is looked for.
_DEPTH = 16

#: What the CPU was doing is all there is to these: whoever stands at the instruction pointer.
_FAULTS = frozenset({K.DIVIDE_ERROR, K.INVALID_OPCODE, K.DOUBLE_FAULT, K.UBSAN, K.KCSAN})
_SLEEPING = frozenset({K.HUNG_TASK, K.ATOMIC_SLEEP, K.INVALID_WAIT_CONTEXT, K.WORKQUEUE_LOCKUP})
_IDLE = frozenset({"do_idle", "cpu_startup_entry", "cpu_idle_loop", "rcu_gp_kthread"})
STALLED = frozenset({K.SOFT_LOCKUP, K.HARD_LOCKUP, K.RCU_STALL})
#: Where the CPU stood is chance.
_ANCHORED = STALLED | {K.STACK_OVERFLOW}
#: Raised by a call, not by a trap: an exception in their stacks belongs to it.
_CALLED = frozenset({K.ATOMIC_SLEEP, K.DEADLOCK, K.SUSPICIOUS_RCU, K.INVALID_WAIT_CONTEXT})
#: Where the report of a lock tells where it, or its forerunners, were taken.
_CHAIN = re.compile(r"^\s*-> #\d", re.MULTILINE)
#: A stack in a report that has several: of a CPU, or of a task.
_STACK = re.compile(
    r"^\s*(?:(?P<task>task:\S|Task dump|\S.{0,15} R  running)|(?P<nmi>NMI backtrace for cpu)"
    r"|CPU: \d+ (?:UID|PID)|Call [Tt]race|Kernel panic|Backtrace:)",
    re.MULTILINE,
)
#: The work of a worker thread in whose stack it does not show.
_WORK = re.compile(
    r"^Workqueue: \S+ (?P<function>[A-Za-z_][\w.]*)(?: \[[\w-]+\])?\s*$", re.MULTILINE
)
#: Suspects of a stall that somebody else noticed, in order: tasks in whose midst RCU waits, CPUs
#: that were asked what they do, whoever noticed.
_TASK, _ASKED, _NOTICED = range(3)
_OTHERS_STALL = re.compile(
    r"detected (?:expedited )?stalls|CPU:? ?\d+ detected [Hh]ard LOCKUP (?:on CPU|other)"
    r"|non-responsive CSD lock"
)


def _lists(kind: CrashKind) -> list[re.Pattern[str]]:
    chosen = [duties.REPORTERS, duties.HELPERS, duties.ENTRIES]
    if kind is not K.KCSAN:
        chosen.append(duties.LOCKS)
    if kind not in _FAULTS | STALLED:
        chosen.append(duties.ALLOCATORS)
    if kind in (K.NULL_DEREFERENCE, K.BAD_PAGE):
        chosen.append(duties.RELEASERS)
    if kind is K.MEMORY_LEAK:
        chosen.append(duties.CONTAINERS)
    if kind in _SLEEPING or kind in _ANCHORED:
        chosen.append(duties.SLEEPERS)
    if kind in _ANCHORED:
        chosen.append(duties.INTERRUPTS)
    return chosen


_LISTS = {kind: _lists(kind) for kind in CrashKind}


@lru_cache(maxsize=8192)
def _guilty(kind: CrashKind, function: str) -> bool:
    plain = function.removesuffix("_noprof")
    return not any(names.match(plain) for names in _LISTS[kind])


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
    if kind is K.PANIC and _PANIC_OF_STALL.search(text):
        kind = K.SOFT_LOCKUP
    if kind in STALLED and (busy := _busy(kind, entries, text)) is not None:
        return busy
    functions = _functions(_main(kind, entries, text)) or [e.frame.function for e in entries]
    if _is_stack_used_up(kind, text):
        deep = K.STACK_OVERFLOW
        repeated = (a for a, b in pairwise(functions) if a == b and _guilty(deep, a))
        if (name := next(repeated, None) or _anchor(deep, functions)) is not None:
            return name
    inner = _without_instruments(_interrupted(kind, functions), duties.INSTRUMENTS)
    for function in inner:
        if _guilty(kind, function):
            return function
    if kind is K.DEADLOCK and (holder := _holder(entries, text)) is not None:
        return holder
    return _last_resort(kind, [*filter(None, named), *inner], text)


def _last_resort(kind: CrashKind, functions: Sequence[str], text: str) -> str | None:
    """Whom to name where nobody is guilty by the lists."""
    if kind in _SLEEPING | STALLED and (work := _WORK.search(text)) is not None:
        return base_name(work["function"])
    for name in functions:
        if not duties.REPORTERS.match(name) and not duties.ENTRIES.match(name):
            # Of a stall, the interrupt that has noticed it tells nothing.
            return None if kind in STALLED and _machinery(name) else name
    return None


def _is_stack_used_up(kind: CrashKind, text: str) -> bool:
    return kind is K.STACK_OVERFLOW or _STACK_USED_UP.search(text) is not None


def _functions(entries: Iterable[Entry]) -> list[str]:
    """What surely was called. A log that was symbolised has the same title as one that was not."""
    reliable = [entry for entry in entries if entry.frame.reliable]
    whole = [entry for entry in reliable if not entry.is_inlined]
    return [entry.frame.function for entry in whole or reliable]


def _interrupted(kind: CrashKind, functions: Sequence[str]) -> Sequence[str]:
    """The frames of the context that a trap interrupted, where a trap raised the report."""
    if kind in _CALLED or not any(duties.RAISERS.match(name) for name in functions[:_DEPTH]):
        return functions
    raised = next(i for i, name in enumerate(functions) if duties.RAISERS.match(name))
    start = raised
    for index, name in enumerate(functions[raised : raised + _DEPTH], raised):
        if duties.TRAPS.match(name):
            start = index + 1
        elif start > raised:
            break
    return functions[start:] or functions


def _without_instruments(functions: Sequence[str], instruments: re.Pattern[str]) -> Sequence[str]:
    """The frames without what was called in order to print, to unwind or to check."""
    start = 0
    for index, name in enumerate(functions[:_DEPTH]):
        if _is_entry(name):
            break
        if instruments.match(name):
            start = index + 1
    return functions[start:] or functions


# As with `_guilty`: reports share most of their functions, and these lists are long.
@lru_cache(maxsize=8192)
def _is_entry(function: str) -> bool:
    """Whether a trap, a system call or a thread begins with it."""
    return any(names.match(function) for names in (duties.TRAPS, duties.ENTRIES, _SYSTEM_CALL))


def _holder(entries: Sequence[Entry], text: str) -> str | None:
    """The first function of the chain that led to a lock whose own taker is only machinery."""
    begin = _CHAIN.search(text)
    if begin is None:
        return None
    chain = _functions(entry for entry in entries if entry.position > begin.start())
    return next((name for name in chain if _guilty(K.DEADLOCK, name)), None)


def _busy(kind: CrashKind, entries: Sequence[Entry], text: str) -> str | None:
    """The anchor of the CPU that was at work, among CPUs of which some were idle."""
    for functions in _stacks(entries, text):
        own = next((i for i, name in enumerate(functions) if not _machinery(name)), None)
        if own is not None and (name := _anchor(kind, functions[own:])) is not None:
            return name
    return None


def _machinery(function: str) -> bool:
    """Whether a stalled CPU's innermost frame is of the interrupt that noticed the stall."""
    return bool(duties.REPORTERS.match(function) or duties.INTERRUPTS.match(function))


def _stacks(entries: Sequence[Entry], text: str) -> list[list[str]]:
    """The stacks of the CPUs and tasks that were at work, the most suspicious first."""
    marks = [(0, _NOTICED), *((mark.start(), _rank(mark)) for mark in _STACK.finditer(text))]
    ends = [start for start, _ in marks[1:]] + [len(text)]
    stacks: list[tuple[int, list[str]]] = []
    rank = _NOTICED
    registers: list[str] = []
    for (start, own_rank), end in zip(marks, ends, strict=True):
        rank = min(rank, own_rank)
        own = [entry for entry in entries if start <= entry.position < end]
        functions = _functions(own)
        if all(entry.is_pc or entry.is_link for entry in own):
            registers += _functions(entry for entry in own if entry.is_pc)
        elif functions:
            stacks.append((rank, [*registers, *functions]))
            rank, registers = _NOTICED, []
    stacks.append((rank, registers))
    if _OTHERS_STALL.search(text):
        stacks.sort(key=lambda stack: stack[0])
    return [functions for _, functions in stacks if not _is_idle(functions)]


def _rank(mark: re.Match[str]) -> int:
    return _TASK if mark["task"] else _ASKED if mark["nmi"] else _NOTICED


def _is_idle(functions: Sequence[str]) -> bool:
    """Whether a CPU had nothing to do, not even in an interrupt, or slept in RCU's own thread."""
    for name in functions:
        if name in _IDLE:
            return True
        if _guilty(K.RCU_STALL, name):
            return False
    return True


def _anchor(kind: CrashKind, functions: Sequence[str]) -> str | None:
    """What the CPU was doing, by a name that is the same wherever in it the CPU stood."""
    inner = _without_instruments(_without_instruments(functions, duties.INSTRUMENTS), duties.CHANCE)
    working = [name for name in inner if _guilty(kind, name) or duties.CROSS_CALLS.match(name)]
    if working and kind in STALLED and any(duties.CROSS_CALLS.match(name) for name in working[:1]):
        # It waits for another CPU; through which of the entries is chance.
        return "smp_call_function"
    for name, caller in pairwise(inner):
        if (
            duties.DISPATCHERS.match(caller)
            and not duties.DISPATCHERS.match(name)
            and _guilty(kind, name)
        ):
            return name
    for name in inner:
        if _SYSTEM_CALL.match(name):
            return name
    if _PROGRAMS_FAULT in inner:
        return _PROGRAMS_FAULT
    return next((name for name in inner if _guilty(kind, name)), None)


def _main(kind: CrashKind, entries: Sequence[Entry], text: str) -> list[Entry]:
    """The frames of the stack that the report is about: not of who allocated or freed."""
    if kind in STALLED:
        return list(entries)
    parts = sections(text)
    main = [part.is_main for part in parts]
    if kind is K.BAD_PAGE:
        # Who gives the page back is chance; who uses it has allocated it.
        by_user = [text.startswith("page last allocated", part.start) for part in parts]
        main = by_user if any(by_user) else main
    starts = [part.start for part in parts]
    return [e for e in entries if main[bisect_right(starts, e.position) - 1]]
