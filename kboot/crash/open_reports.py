"""The reports that are being written: which line goes to which, and when each is complete."""

from __future__ import annotations

import re
from enum import Enum, auto

from kboot.crash.addresses import AddressNames
from kboot.crash.lines import KernelLine
from kboot.crash.model import CrashKind, CrashReport, Event, Opened
from kboot.crash.report import MARKED, Draft, build
from kboot.crash.rule import Rule

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

_HEADING = re.compile(r"\s*(?:Call [Tt]race|Backtrace):")
_TRACE = re.compile(
    r"\s*(?:Call [Tt]race|stack backtrace|Backtrace:|CPU: \d+ |Modules linked in|RIP: |pc : "
    r"|PC is at|epc : |NIP |Krnl PSW|Hardware name|\(*[\w.$]++\+0x[0-9a-f]+/0x"
    r"|\[<(?:[0-9a-f]{8,16}|\(_*ptrval_*\))>\]"
    r"|\S+ is (?:trying|freeing|leaving)|backtrace)"
)
#: What comes next behind a report's first line.
_GOES_ON = re.compile(
    _TRACE.pattern + r"|\s*(?:#PF: |IP: \[<|PGD |Mem abort info|Oops|Internal error|.*\[#\d+\]"
    r"|Tainted|Not tainted)"
)
#: Where the stack itself begins.
_STACK = re.compile(
    r"\s*(?:Call [Tt]race|stack backtrace|Backtrace:|backtrace|Function entered at"
    r"|\(*[\w.$]++\+0x[0-9a-f]+/0x|\[<(?:[0-9a-f]{8,16}|\(_*ptrval_*\))>\])"
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
    kthread|Function.entered|Stack.dump|Register|blocking|PKRU|mm|vma|file|addr|page_owner|use.of|shadow|Memory.cgroup|rcu|runnable
"""
_WORD = "|".join(_WORDS.split())
_REGISTER = r"(?:[ER]?(?:IP|SP|FLAGS|[A-D]X|[SD]I|BP)|R\d\d|[CDEFGS]S|[CD]R\d|FSGS|PSR)[:=\d ]"
_REGISTER_RISC = r"(?:pc|lr|sp|ip|fp|pstate|[xrsta]\d+|[rg]a|gp|tp|zero)\s*:\s"
_OWN_LINES = re.compile(
    rf"""
    \s*(?:
        $
      | [<\[(]* [\w.$]++ (?:\(\))? \+0x[0-9a-f]+/0x            # a frame
      | \?\s | \[<[0-9a-fx\s]*(?:inline|\(_*ptrval_*\))?\s*>\] | \[[0-9a-f]{{8,16}}\]
      | [\w.$]++\ [\w./-]+\.[chS]:\d+                         # an inlined frame
      | <{{1,2}}/?[A-Z\#_]\w*>                                   # <IRQ>
      | {_REGISTER} | {_REGISTER_RISC}
      | (?:{_WORD})\b
      | \d+-\.*: | \(detected\ | \(t= | ->\s | \#\d+: | >?[0-9a-f]{{8,16}}: | ffff[0-9a-f]+\s
      | 0x[0-9a-f]+
      | >?[0-9a-fA-F]{{4,16}}:?\ +[0-9a-f]{{8,16}}\b            # a dump of memory
      | [=-]{{20,}} | ---\[ | \*{{3}} | \d+\ locks?\ held | no\ locks\ held | \(.*\)\{{ | \{{
      | \S+\ (?:is\ (?:trying|freeing|leaving)|just\ changed|takes)
      | BUG:\ Bad\b
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
        K.UBSAN,
    }
)
_DIE_WITHIN = 40
#: Lines of a WARN's message, before the line that says where.
_MESSAGE_LINES = 8
_INLINE_DEPTH = 8


def classify(draft: Draft, text: str) -> Verdict:
    """Look at one more line of the report's own context; note on the draft what it shows."""
    if not draft.has_stack and _STACK.match(text):
        draft.has_trace = draft.has_stack = True
    elif not draft.has_trace and _TRACE.match(text):
        draft.has_trace = True
    first = text[:1]
    if (first in _CLOSERS or "[ end " in text) and _CLOSING.match(text):
        return _closing(draft, text)
    # Frames are indented, and they are most of all lines.
    return Verdict.OWN if first in " " or _OWN_LINES.match(text) else Verdict.FOREIGN


def _closing(draft: Draft, text: str) -> Verdict:
    is_panic = draft.rule.is_panic or draft.panicked
    if is_panic:
        final = "[ end Kernel panic" in text or "Rebooting in" in text
        return Verdict.END if final else Verdict.OWN
    return Verdict.END if draft.has_trace else Verdict.OWN


def continues(draft: Draft, rule: Rule, words: str) -> bool:
    """Whether a line that could begin a report by `rule`, `words`, is a part of `draft`."""
    if rule.is_die and draft.kind in _BEFORE_DIE and not draft.has_die:
        # "Bad mode in" and others show the registers first.
        shown = draft.has_trace and draft.kind not in (K.OOPS, K.PAGE_FAULT, K.NULL_DEREFERENCE)
        within = _DIE_WITHIN if draft.has_trace else _MAX_FOREIGN_WITHOUT_STACK
        draft.has_die = len(draft.lines) < within and not shown
        return draft.has_die
    if draft.rule.is_panic:
        return rule.is_panic
    if rule.is_die and draft.has_die and draft.has_stack:
        return False
    return bool(rule.needs_trace) or _repeats(draft, rule) or _explains(draft, rule, words)


#: "BUG: key ... has not been registered!" comes before a WARN of lockdep's own.
_MESSAGES = frozenset({K.BUG, K.LOCK_MISUSE})


def _explains(draft: Draft, rule: Rule, words: str) -> bool:
    """Whether `draft` is, so far, only the message of a WARN or BUG that `rule` has found."""
    if draft.kind is K.BUG and rule.kind is K.NULL_DEREFERENCE:
        # Up to 2.6.3x arm's BUG() wrote to address 0.
        return len(draft.lines) == 1 and "file" in draft.rule.pattern.groupindex
    names_file = "file" in rule.pattern.groupindex
    # Permissive CFI since 6.1 has a WARNING without a file.
    is_warn = rule.kind is K.WARNING and not rule.needs_trace
    is_site = is_warn or (rule.kind is K.BUG and names_file)
    if draft.kind is K.SLAB_CORRUPTION:
        # Since 6.16 a WARN is SLUB's trace.
        return is_site and "mm/slub.c:" in words and not draft.has_die
    is_message = draft.kind in _MESSAGES and "file" not in draft.rule.pattern.groupindex
    return is_site and is_message and not draft.has_trace and len(draft.lines) <= _MESSAGE_LINES


def _repeats(draft: Draft, rule: Rule) -> bool:
    """Whether a report of `draft`'s kind has more than one line that could be its first."""
    if rule.kind is draft.kind and draft.kind in (K.KASAN, K.KMSAN):
        # A symbolised log repeats the first line for every inlined function.
        return len(draft.lines) <= _INLINE_DEPTH and not draft.has_trace
    if draft.kind is K.KASAN and rule.kind is K.SLAB_CORRUPTION:
        # Up to 4.8 KASAN had SLUB print the object: "BUG kmalloc-64 (Not tainted): kasan: bad ...".
        return not draft.has_trace
    if draft.kind is K.BAD_PAGE and rule.pattern is draft.rule.pattern and not draft.has_trace:
        # One line for each counter, or each entry of a table.
        return True
    if draft.kind is K.HARD_LOCKUP and rule.kind is K.HARD_LOCKUP:
        # The message of the WARN that reported lockups up to 4.2.
        return draft.rule.kind is K.WARNING
    told = any(rule.anchor in line for line in draft.lines)
    return draft.kind is rule.kind is K.MEMORY_LEAK and not told


#: Lines of one report; a stall on a big machine dumps every CPU.
_MAX_LINES = 2500
#: Lines in a row that belong to no report: it is over.
_MAX_FOREIGN = 25
#: The same for a report of which the stack is still to come.
_MAX_FOREIGN_WITHOUT_STACK = 200
#: Lines of others in a row: the report's context has gone on to something else.
_MAX_SILENCE = 300
#: Kinds that are believed without a trace if the log stops in the midst of it.
_SURE_WITHOUT_TRACE = frozenset({K.OOPS, K.HUNG_TASK, K.HARD_LOCKUP, K.SLAB_CORRUPTION, K.PANIC})
#: A first line that needs a trace must get it within this many lines.
_TRACE_WITHIN = 15
#: With every so many open reports, those that are silent are looked for.
_MANY_OPEN = 512
#: What follows is a trace, but of no report.
_OTHERS_TRACE = re.compile(r"FAULT_INJECTION: forcing|.{1,16} invoked oom-killer: |sysrq: ")
_NONE: list[Draft] = []
_OWN = Verdict.OWN
#: Lines after a report's end marker in which its panic comes: x86 shows the registers once more.
_PANIC_WITHIN = 40
#: Lines of others there that tell that the kernel goes on.
_ENOUGH = 3
#: A panic this many lines after a report may be its consequence.
_CHAIN_LINES = 60
#: Lines in which a report whose first line's caller is garbled goes on.
_ADOPTED_WITHIN = 8


def _most_foreign(draft: Draft) -> int:
    """Lines of others in a row that a report may have in its midst."""
    waits = draft.kind in MARKED and not draft.has_stack
    return _MAX_FOREIGN_WITHOUT_STACK if waits else _MAX_FOREIGN


class Drafts:
    """All open reports of one console, by the context (task or CPU) that prints them."""

    def __init__(self, names: AddressNames | None = None) -> None:
        self._names = names
        self.events: list[Event] = []
        self.last: CrashReport | None = None
        self.open: list[Draft] = []
        #: The same reports by caller; a caller that only contributes to another's has it here too.
        self._by_caller: dict[str, list[Draft]] = {}

    def begin(
        self, rule: Rule, match: re.Match[str], line: KernelLine, *, torn: bool = False
    ) -> None:
        """Take a report's first line, unless a report that runs already has it as its next one.

        `torn`: it stood behind a program's words.
        """
        if self._is_talk(rule, line):
            return
        mine = self._of(line)
        if not mine and line.caller:
            mine = self._adopted(line)
        if not rule.is_panic:
            for draft in [each for each in mine if each.closed_at]:
                self._complete(draft, cut=False)
            mine = self._of(line)
        # A log that two daemons write has every line twice.
        words = match.string[match.start() :]
        first = [words]
        for draft in mine:
            draft.doubled |= draft.lines == first
            if draft.doubled and draft.lines[-1].strip() == words:
                self._note_end(draft, line)
                return
        if rule.needs_die and self._forget_programs_fault(mine, rule):
            mine = self._of(line)
        if any(draft.lines == first or continues(draft, rule, words) for draft in mine):
            self.extend(line)
            return
        for draft in list(mine):
            if rule.is_panic and not draft.rule.is_panic:
                # "Fatal exception", "panic_on_warn": the trace of the cause may still follow.
                draft.panicked = True
                draft.closed_at = 0
                draft.ended = False
                self._add(draft, line)
            else:
                self._complete(draft, cut=False)
        self.start(Draft.begin(rule, match, line, torn=torn))
        if not len(self.open) % _MANY_OPEN:
            # No line but first ones, each by another task: `extend` is not called.
            self._complete_forgotten(line.number)

    def _is_talk(self, rule: Rule, line: KernelLine) -> bool:
        """Whether a program has said so in the midst of a report, whose trace is still to come.

        What a program has said before a report goes for the same reason.
        """
        same = self._by_caller.get(line.caller, _NONE)
        if not line.stamped:
            return rule.needs_its_place and any(draft.stamped for draft in same)
        for draft in {*same, *self._by_caller.get("", _NONE)}:
            if draft.rule.needs_its_place and not (draft.stamped or draft.announced):
                self._forget(draft)
        return False

    def _forget_programs_fault(self, mine: list[Draft], rule: Rule) -> bool:
        """Whether a program's own fault came before that of the kernel, and was taken for it."""
        programs = [each for each in mine if each.rule is rule and not each.announced]
        for draft in programs:
            self._forget(draft)
        return bool(programs)

    def start(self, draft: Draft) -> None:
        """Open a report."""
        self.open.append(draft)
        self._give(draft.caller, draft)
        if not draft.rule.needs_trace:
            self._announce(draft)

    def _give(self, caller: str, draft: Draft) -> None:
        """From now on that caller's lines go to the report."""
        if caller not in draft.callers:
            draft.callers.add(caller)
            self._by_caller.setdefault(caller, []).append(draft)

    def extend(self, line: KernelLine) -> None:
        """Give a line to the reports it belongs to."""
        mine = self._by_caller.get(line.caller, _NONE)
        if not line.stamped:
            mine = self._of(line)
        if not mine and FOREIGN_CPU.match(line.text):
            collectors = [d for d in self.open if d.kind in COLLECTORS]
            mine = collectors[-1:]
            for draft in mine:
                self._give(line.caller, draft)
        elif not mine and line.caller and "" in self._by_caller:
            mine = self._adopted(line)
        for draft in mine if len(mine) < 2 else list(mine):
            self._add(draft, line)
        if not line.number % 64:
            self._complete_forgotten(line.number)

    def _adopted(self, line: KernelLine) -> list[Draft]:
        """The report whose first line's caller cannot be read, if `line` goes on with it."""
        for draft in self._by_caller.get("", _NONE):
            near = line.number - draft.start_line <= _ADOPTED_WITHIN
            loose = draft.torn or not (draft.stamped or draft.rule.needs_its_place)
            if near and loose and not draft.has_trace and _GOES_ON.match(line.text):
                self._forget(draft)
                draft.caller, draft.stamped, draft.torn = line.caller, True, False
                self.open.append(draft)
                self._give(line.caller, draft)
                return [draft]
        return _NONE

    def again(self, line: KernelLine) -> None:
        """Note that the line before has come once more."""
        for draft in self.open:
            self._note_end(draft, line)

    def _note_end(self, draft: Draft, line: KernelLine) -> None:
        """`line` repeats the one before: it belongs to the report if that one does."""
        if draft.end_line == line.number - 1:
            draft.end_line, draft.end_offset = line.number, line.end

    def _complete_forgotten(self, number: int) -> None:
        for draft in list(self.open):
            if number - draft.end_line > _MAX_SILENCE:
                self._complete(draft, cut=False)

    def believe_cut(self) -> None:
        """The log stops in the midst of a line: what is missing would confirm the open reports."""
        for draft in self.open:
            is_kernels = draft.stamped and draft.prefix is None
            whole = draft.kept >= len(draft.lines) - 1
            if not draft.announced and is_kernels and whole and draft.kind in _SURE_WITHOUT_TRACE:
                self._announce(draft)

    def complete_all(self, *, cut: bool) -> None:
        """Complete every open report. `cut`: nothing more will come."""
        for draft in list(self.open):
            self._complete(draft, cut=cut)

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def _of(self, line: KernelLine) -> list[Draft]:
        mine = self._by_caller.get(line.caller, _NONE)
        if line.stamped or not mine:
            return mine
        # Where the kernel's lines are stamped, one without is a program's, unless it is indented
        # like the later lines of a record in dmesg's output.
        indented = line.text.startswith("        ")
        return [each for each in mine if indented or each.torn or not each.stamped]

    def _add(self, draft: Draft, line: KernelLine) -> None:
        text = line.text
        if draft.prefix is not None and (prefix := draft.prefix.match(text)) is not None:
            text = text[prefix.end() :]
        if draft.doubled and text == draft.lines[-1]:
            self._note_end(draft, line)
            return
        draft.lines.append(text)
        count = len(draft.lines)
        if draft.closed_at:
            if draft.has_stack or not _HEADING.match(text):
                draft.foreign_after += classify(draft, text) is Verdict.FOREIGN
                if count - draft.closed_at >= _PANIC_WITHIN or draft.foreign_after >= _ENOUGH:
                    self._complete(draft, cut=False)
                return
            draft.closed_at = 0
            draft.ended = False
        verdict = classify(draft, text)
        if verdict is _OWN:
            draft.kept = count
            draft.end_line = line.number
            draft.end_offset = line.end
            if draft.announced and count < _MAX_LINES:
                return
        if verdict is Verdict.END:
            self._close(draft, line)
        elif not draft.announced:
            self._doubt(draft, line, count)
        elif count >= _MAX_LINES or count - draft.kept >= _most_foreign(draft):
            self._complete(draft, cut=False)

    def _close(self, draft: Draft, line: KernelLine) -> None:
        """Its end marker has come; a panic that it leads to may still follow."""
        draft.kept = draft.closed_at = len(draft.lines)
        draft.end_line = line.number
        draft.end_offset = line.end
        draft.ended = True
        if draft.rule.is_panic or draft.panicked or (draft.has_stack and not draft.has_die):
            self._complete(draft, cut=False)

    def _doubt(self, draft: Draft, line: KernelLine, count: int) -> None:
        """A report that is none unless a trace follows, which for a program's words none does."""
        if line.stamped and not draft.stamped and draft.rule.needs_its_place:
            self._forget(draft)
        elif draft.has_trace and (draft.has_die or not draft.rule.needs_die):
            self._announce(draft)
        elif count >= _TRACE_WITHIN or _OTHERS_TRACE.match(draft.lines[-1]):
            self._forget(draft)

    def _announce(self, draft: Draft) -> None:
        draft.announced = True
        self.events.append(
            Opened(kind=draft.kind, line=draft.start_line, offset=draft.start_offset)
        )

    def _forget(self, draft: Draft) -> None:
        self.open.remove(draft)
        for caller in draft.callers:
            rest = [other for other in self._by_caller[caller] if other is not draft]
            if rest:
                self._by_caller[caller] = rest
            else:
                del self._by_caller[caller]
        draft.callers.clear()

    def _complete(self, draft: Draft, *, cut: bool) -> None:
        """Turn a draft into a report, after the one that may have caused it."""
        if draft not in self.open:
            return
        if draft.rule.is_panic:
            for other in [d for d in self.open if d.panicked]:
                other.ended |= draft.ended
                self._complete(other, cut=cut)
        self._forget(draft)
        if draft.announced:
            cause = self._cause(draft)
            self.last = build(draft, cut=cut, caused_by=cause, names=self._names)
            self.events.append(self.last)

    def _cause(self, draft: Draft) -> CrashReport | None:
        last = self.last
        if last is None or not draft.rule.is_panic:
            return None
        near = draft.start_line - last.end_line <= _CHAIN_LINES
        return last if near and last.start_line < draft.start_line else None
