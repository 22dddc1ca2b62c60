"""Which lines belong to a running report, and which end it."""

from __future__ import annotations

import re
from enum import Enum, auto

from kboot.crash.model import CrashKind
from kboot.crash.report import Draft
from kboot.crash.rules import Rule

K = CrashKind


class Verdict(Enum):
    """What a line is to a report."""

    OWN = auto()
    FOREIGN = auto()
    END = auto()


#: Reports that gather what other CPUs say of themselves.
COLLECTORS = frozenset(
    {K.RCU_STALL, K.SOFT_LOCKUP, K.HARD_LOCKUP, K.HUNG_TASK, K.WORKQUEUE_LOCKUP, K.PANIC}
)
#: The first line of another CPU's contribution.
FOREIGN_CPU = re.compile(r"\s*NMI backtrace for cpu \d+")

_TRACE = re.compile(
    r"\s*(?:Call [Tt]race|stack backtrace|Backtrace:|CPU: \d+ |Modules linked in|RIP: |pc : "
    r"|PC is at|epc : |NIP |Hardware name|\(*[\w.$]+\+0x[0-9a-f]+/0x|\[<[0-9a-f]{8,16}>\]"
    r"|\S+ is (?:trying|freeing|leaving)|backtrace)"
)
#: First words of lines that stand in reports, beside frames, registers and dumps.
_WORDS = r"""
    Call.[Tt]race|Backtrace|backtrace|stack.backtrace|Modules.linked|Last.unloaded|CPU\d*|CPU:|Comm
    Hardware.name|Workqueue|Code|Process|Stack|Exception.stack|Kernel.Offset|Kernel.panic|kernel.BUG
    Internal.error|Oops|[Tt]ainted|Not.tainted|task|unwind|note|kasan|KASAN|irq.event|(?:hard|soft)irqs
    Mem.abort|Data.abort|ESR|EC|SET|EA|FSC|ISV|CM|swapper.pgtable|user.pgtable|P[GU4M]D|pgd|pud|\#PF|IP|virt
    PC.is.at|LR.is.at|EIP.is.at|NIP|LR|CTR|MSR|XER|GPR\d*|CFAR|Krnl|psr|Flags|Control|status|epc|ORIG_RAX
    Read.of|Write.of|Allocated|Freed|The.buggy|Memory.state|which.belongs|page|flags|raw|head|Object|Redzone
    Padding|Bytes.b4|Bytes|Last.pot|Second|Uninit|Local.var|Reported.by|read|write|value.changed|comm|hex.dump
    other.info|Possible|the.existing|Chain.exists|to.a|which|but|and|the.dep|Showing|lock|may.lead|INITIAL
    INFO:.(?:lockdep|Slab|Object|Allocated|Freed|NMI)|Disabling.lock|in_atomic|preempt_count|Preemption|RCU
    Sending.NMI|NMI.backtrace|Dumping.ftrace|Rebooting|Shutting.down|SMP|Trace|last.function|memory.used
    kthread|Stack.dump|blocking|PKRU|mm|vma|file|addr|page_owner|use.of|shadow|Memory.cgroup|rcu|runnable
"""
_WORD = "|".join(_WORDS.split())
_REGISTER = r"(?:[ER]?(?:IP|SP|FLAGS|[A-D]X|[SD]I|BP)|R\d\d|[CDEFGS]S|[CD]R\d|FSGS|PSR)[:=\d ]"
_REGISTER_RISC = r"(?:pc|lr|sp|ip|fp|pstate|[xrsta]\d+|[rg]a|gp|tp|zero)\s*:\s"
_OWN = re.compile(
    rf"""
    \s*(?:
        $
      | [<\[(]* [\w.$]+ (?:\(\))? \+0x[0-9a-f]+/0x            # a frame
      | \?\s | \[<[0-9a-fx\s]*(?:inline)?\s*>\] | \[[0-9a-f]{{8,16}}\]
      | [\w.$]+\ [\w./-]+\.[chS]:\d+                         # an inlined frame
      | <{{1,2}}/?[A-Z\#_]\w*>                                   # <IRQ>
      | {_REGISTER} | {_REGISTER_RISC}
      | (?:{_WORD})\b
      | \d+-\.*: | \(detected\ | \(t= | ->\s | \#\d+: | >?[0-9a-f]{{8,16}}: | ffff[0-9a-f]+\s
      | 0x[0-9a-f]+
      | [=-]{{20,}} | ---\[ | \*{{3}} | \d+\ locks?\ held | no\ locks\ held | \(.*\)\{{ | \{{
      | \S+\ (?:is\ (?:trying|freeing|leaving)|just\ changed|takes)
    )
    """,
    re.VERBOSE,
)
_CLOSERS = frozenset("-=R")
_CLOSING = re.compile(r"\s*(?:---\[ end |={40,}$|Rebooting in \d)")
#: What is said before the header of die(): the header belongs to the same report.
_BEFORE_DIE = frozenset(
    {
        K.PAGE_FAULT,
        K.NULL_DEREFERENCE,
        K.BUG,
        K.DATA_CORRUPTION,
        K.USERCOPY,
        K.STACK_OVERFLOW,
        K.DOUBLE_FAULT,
        K.OOPS,
        K.GENERAL_PROTECTION,
        K.KFENCE,
    }
)
_DIE_WITHIN = 40
_INLINE_DEPTH = 8


def classify(draft: Draft, text: str) -> Verdict:
    """Look at one more line of the report's own context; note on the draft what it shows."""
    if not draft.has_trace and _TRACE.match(text):
        draft.has_trace = True
    first = text[:1]
    if (first in _CLOSERS or "[ end " in text) and _CLOSING.match(text):
        return _closing(draft, text)
    # Frames are indented, and they are most of all lines.
    return Verdict.OWN if first in " " or _OWN.match(text) else Verdict.FOREIGN


def _closing(draft: Draft, text: str) -> Verdict:
    is_panic = draft.rule.is_panic or draft.panicked
    if is_panic:
        final = "[ end Kernel panic" in text or "Rebooting in" in text
        return Verdict.END if final else Verdict.OWN
    return Verdict.END if draft.has_trace else Verdict.OWN


def continues(draft: Draft, rule: Rule) -> bool:
    """Whether a line that could begin a report by `rule` is a part of `draft`."""
    if rule.is_die and draft.kind in _BEFORE_DIE and not draft.has_die:
        # "Bad mode in" and others show the registers first.
        shown = draft.has_trace and draft.kind not in (K.OOPS, K.PAGE_FAULT, K.NULL_DEREFERENCE)
        draft.has_die = len(draft.lines) < _DIE_WITHIN and not shown
        return draft.has_die
    if draft.rule.is_panic:
        return rule.is_panic
    return bool(rule.needs_trace) or _repeats(draft, rule)


def _repeats(draft: Draft, rule: Rule) -> bool:
    """Whether a report of `draft`'s kind has more than one line that could be its first."""
    if rule.kind is draft.kind and draft.kind in (K.KASAN, K.KMSAN):
        # A symbolised log repeats the first line for every inlined function.
        return len(draft.lines) <= _INLINE_DEPTH and not draft.has_trace
    if draft.kind is K.KASAN and rule.kind is K.SLAB_CORRUPTION:
        # Up to 4.8 KASAN had SLUB print the object: "BUG kmalloc-64 (Not tainted): kasan: bad ...".
        return not draft.has_trace
    if draft.kind is K.HARD_LOCKUP and rule.kind is K.HARD_LOCKUP:
        # The message of the WARN that reported lockups up to 4.2.
        return draft.rule.kind is K.WARNING
    told = any(rule.anchor in line for line in draft.lines)
    return draft.kind is rule.kind is K.MEMORY_LEAK and not told
