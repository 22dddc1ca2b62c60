"""What the crash engine says: kinds, frames, reports, events. All of them are frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CrashKind(StrEnum):
    """The family a report belongs to; the value is what ``--json`` shows."""

    PANIC = "panic"
    OOPS = "oops"
    PAGE_FAULT = "page-fault"
    NULL_DEREFERENCE = "null-dereference"
    GENERAL_PROTECTION = "general-protection"
    DIVIDE_ERROR = "divide-error"
    INVALID_OPCODE = "invalid-opcode"
    DOUBLE_FAULT = "double-fault"
    MACHINE_CHECK = "machine-check"
    STACK_OVERFLOW = "stack-overflow"
    STACK_CORRUPTION = "stack-corruption"
    BUG = "bug"
    WARNING = "warning"
    KASAN = "kasan"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    KFENCE = "kfence"
    UBSAN = "ubsan"
    MEMORY_LEAK = "memory-leak"
    REFCOUNT = "refcount"
    DATA_CORRUPTION = "data-corruption"
    SLAB_CORRUPTION = "slab-corruption"
    BAD_PAGE = "bad-page"
    USERCOPY = "usercopy"
    ODEBUG = "odebug"
    DEADLOCK = "deadlock"
    LOCK_HELD = "lock-held"
    LOCK_MISUSE = "lock-misuse"
    INVALID_WAIT_CONTEXT = "invalid-wait-context"
    SUSPICIOUS_RCU = "suspicious-rcu"
    ATOMIC_SLEEP = "atomic-sleep"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    RCU_STALL = "rcu-stall"
    HUNG_TASK = "hung-task"
    WORKQUEUE_LOCKUP = "workqueue-lockup"
    NETDEV_LEAK = "netdev-leak"
    COMPLAINT = "complaint"
    OOM_PANIC = "oom-panic"
    INIT_KILLED = "init-killed"
    NO_INIT = "no-init"
    NO_ROOT = "no-root"
    UNEXPECTED_RESET = "unexpected-reset"
    HANG = "hang"


#: Kinds that are no fault of the kernel's own, as long as it goes on: what it says of its hardware
#: (machine checks, an interrupt that nobody handles, a transmit queue that hangs, an MSR that does
#: not exist) and of memory that it could not have at once. They are reported, but no test fails for
#: them.
#:
#: Not even reported: hardware errors that were corrected (``mce: ... events logged``, EDAC, APEI,
#: PCIe AER), NMIs for unknown reasons, tasks killed for want of memory, notes of drivers that begin
#: with ``WARNING:`` and have no trace.
COMPLAINTS = frozenset({CrashKind.COMPLAINT, CrashKind.MACHINE_CHECK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One entry of a stack trace, or the instruction pointer that a report shows."""

    #: As in the source: without what compilers add (``.isra.0``, ``.cold``, C++ mangling, the dot
    #: of big-endian ppc64); a system call is ``sys_read`` on every architecture.
    function: str
    #: The name as printed, with them: what a symbol table calls it.
    symbol: str
    #: Bytes from the start of the symbol; None for inlined functions.
    offset: int | None = None
    #: Size of the symbol in bytes, as the kernel printed it.
    size: int | None = None
    #: The module the function lives in; None for the kernel proper.
    module: str | None = None
    #: The raw address, where the log has one.
    address: int | None = None
    #: False for entries marked ``?``: found on the stack, maybe not called.
    reliable: bool = True
    #: ``file.c:123`` where the log was symbolised already.
    location: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A crash report began; its `CrashReport` follows when it is complete."""

    kind: CrashKind
    #: Number of the trigger line, from 1.
    line: int
    #: Bytes before that line.
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """One complete report of the kernel, or of a death it said nothing about."""

    kind: CrashKind
    #: The same bug has the same title: no addresses, process ids, CPUs, offsets.
    title: str
    #: The function to look at first; None where the log names none.
    function: str | None
    frames: tuple[Frame, ...]
    #: First and last line, from 1, both belong to the report.
    start_line: int
    end_line: int
    #: Bytes before the first line, and up to the end of the last one.
    start_offset: int
    end_offset: int
    #: Name and id of the task that was current.
    task: str | None
    pid: int | None
    cpu: int | None
    #: The taint letters (``GBW``); None where the log says nothing or "Not tainted".
    taint: str | None
    #: The kernel did not go on after it.
    fatal: bool
    #: The log ended, or the machine was reset, in the middle of the report.
    truncated: bool
    #: The report that led to this one: the oops before "Fatal exception".
    caused_by: CrashReport | None
    #: The report's own lines without log prefixes, joined by newlines.
    text: str


#: What `Scanner` returns.
Event = Opened | CrashReport
