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
    r"\s*(?:Call [Tt]race|stack backtrace|Backtrace:|CPU: \d+ |Modules linked in|RIP: |pc : |PC is at|epc : |NIP )"
)
_OWN = re.compile(
    r"""
    \s*(?:
        $ | [<\[(]* [\w.$]+ (?:\(\))? \+0x[0-9a-f]+/0x | \?\ | \[<[0-9a-fx\s]*(?:inline)?\s*>\] | \[[0-9a-f]{8,16}\]
      | </?[A-Z#_]\w*>
      | (?:[ER]?(?:IP|SP|FLAGS|[ABCD]X|[SD]I|BP)|R\d\d|[CDEFGS]S|[CD]R\d|PKRU|Code|pc|lr|sp|pstate|x\d+|r\d+|epc|status
         |ra|gp|tp|t\d|s\d+|a\d|ORIG_RAX|PSR|FSGS|NIP|LR|CTR|MSR|XER|GPR\d\d|CFAR|Krnl\ (?:PSW|GPRS|Code)|psr|Flags|Control
         |PC\ is\ at|LR\ is\ at|EIP\ is\ at|Internal\ error|Oops|Process|Stack|Exception\ stack|Workqueue|Hardware\ name
         |Modules\ linked|Last\ unloaded|CPU|Call\ [Tt]race|Backtrace|Kernel\ Offset|Mem\ abort|Data\ abort|ESR|EC|SET|EA|FSC
         |ISV|CM|user\ pgtable|swapper\ pgtable|PGD|pgd|\#PF|IP|task|Tainted|unwind|note|kasan|KASAN|Sending\ NMI|NMI\ backtrace
         |stack\ backtrace|irq\ event|hardirqs|softirqs|Disabling\ lock|other\ info|Possible\ unsafe|the\ existing
         |Chain\ exists|Possible\ interrupt|to\ a\ |which\ |but\ |and\ |the\ dep|Showing\ |INFO:\ (?:lockdep|Slab|Object|Allocated
         |Freed|NMI)|Read\ of|Write\ of|Allocated|Freed|The\ buggy|Memory\ state|page|flags|raw|Object|Redzone|Padding|Bytes
         |Last\ pot|Second|Uninit|Local\ var|Reported\ by|write\ to|read\ to|value\ changed|backtrace|comm|hex\ dump|Dumping\ ftrace
         |Rebooting|Shutting\ down|SMP|---\[|\*\*\*|Preempt|preempt|Trace|in_atomic|RCU\ nest|last\ function|kernel\ BUG|RBP|irq
         |kthread|Stack\ dump|blocking|Not\ tainted|\"echo|Comm|mm:|vma|index|file|addr)\b
      | rcu: | \d+-\.*: | \(detected | -> | \#\d+: | >?[0-9a-f]{8,16}: | [=-]{20,} | \d+\ locks?\ held | no\ locks\ held
      | [\w./:-]+\ is\ (?:trying|freeing|leaving) | [\w/:+.-]+\ (?:just\ changed|takes) | ffff[0-9a-f]+ | \([^)]*\)\{ | lock\( | \{
      | [\w-]+(?:/\S+)?\s+[A-Z]\s+(?:stack|\d+)
    )
    """,
    re.VERBOSE,
)
_CLOSING = re.compile(r"\s*(?:---\[ end |={40,}$|Rebooting in \d)")
#: What is said before the header of die(): the header belongs to the same report.
_BEFORE_DIE = frozenset(
    {K.PAGE_FAULT, K.NULL_DEREFERENCE, K.BUG, K.DATA_CORRUPTION, K.USERCOPY, K.STACK_OVERFLOW, K.DOUBLE_FAULT, K.OOPS,
     K.GENERAL_PROTECTION, K.KFENCE}
)  # fmt: skip
_DIE_WITHIN = 25


def classify(draft: Draft, text: str) -> Verdict:
    """Look at one more line of the report's own context; note on the draft what it shows."""
    if not draft.has_trace and _TRACE.match(text):
        draft.has_trace = True
    if _CLOSING.match(text):
        return _closing(draft, text)
    return Verdict.OWN if _OWN.match(text) else Verdict.FOREIGN


def _closing(draft: Draft, text: str) -> Verdict:
    is_panic = draft.rule.is_panic or draft.panicked
    if is_panic:
        final = "[ end Kernel panic" in text or "Rebooting in" in text
        return Verdict.END if final else Verdict.OWN
    return Verdict.END if draft.has_trace else Verdict.OWN


def continues(draft: Draft, rule: Rule) -> bool:
    """Whether a line that could begin a report by `rule` is a part of `draft`."""
    if rule.is_die and draft.kind in _BEFORE_DIE and not draft.has_die and not draft.has_trace:
        draft.has_die = len(draft.lines) < _DIE_WITHIN
        return draft.has_die
    if draft.rule.is_panic:
        return rule.is_panic
    if draft.kind is K.KASAN and rule.kind is K.SLAB_CORRUPTION:
        # Up to 4.8 KASAN had SLUB print the object: "BUG kmalloc-64 (Not tainted): kasan: bad access".
        return not draft.has_trace
    if draft.kind is K.MEMORY_LEAK:
        return rule.anchor == "unreferenced object 0x" and len(draft.lines) == 1
    return bool(rule.needs_trace)
