"""From the lines of one report to a `CrashReport`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from kboot.crash import blame, stack
from kboot.crash.addresses import AddressNames
from kboot.crash.lines import KernelLine
from kboot.crash.model import CrashKind, CrashReport, Frame
from kboot.crash.rule import Rule

K = CrashKind

#: WARN and BUG sites whose file tells more than the word.
_BY_FILE = (
    ("lib/refcount.c", K.REFCOUNT, "refcount bug"),
    ("include/linux/refcount.h", K.REFCOUNT, "refcount bug"),
    ("lib/debugobjects.c", K.ODEBUG, "ODEBUG bug"),
    ("lib/list_debug.c", K.DATA_CORRUPTION, "list corruption"),
    ("mm/usercopy.c", K.USERCOPY, "usercopy"),
    # DEBUG_LOCKS_WARN_ON().
    ("kernel/locking/lockdep.c", K.LOCK_MISUSE, "lockdep warning"),
    # Up to 4.2 the lockup detector reports through WARN.
    ("kernel/watchdog.c", K.HARD_LOCKUP, "hard lockup"),
)
#: Who ran, in order of preference, each with words without which its pattern cannot match: to look
#: for them first takes a fraction of the time.
_TASKS = tuple(
    (words, re.compile(pattern, re.MULTILINE))
    for words, pattern in (
        (
            "omm: ",
            r"P(?:ID|id): (?P<pid>\d+),? [Cc]omm: (?P<task>.+?)"
            r"(?=,? (?:Kdump: \w+ )?(?:Not t|T)ainted|$)",
        ),
        # Soft lockup; up to 4.x "[task:pid]" may have a name with colons in it.
        (" stuck for ", r" stuck for \d+s! \[(?P<task>.{1,32}):(?P<pid>\d+)\]"),
        (
            "scheduling while atomic: ",
            r"scheduling while atomic: (?P<task>.{1,32})/(?P<pid>\d+)/0x",
        ),
        (
            "leaked ",
            r"leaked (?:lock|atomic)[\w ,]*: (?P<task>.{1,32}?)/0x[0-9a-f]+/(?P<pid>\d+)",
        ),
        ("lock or RCU: ", r"lock or RCU: (?P<task>.{1,32})\[(?P<pid>\d+)\]"),
        (
            "in preemptible [",
            r"in preemptible \[[0-9a-f]+\] code: (?P<task>.{1,32})/(?P<pid>\d+)",
        ),
        ("in_atomic()", r"in_atomic\(\).* pid: (?P<pid>\d+), name: (?P<task>.{1,32})$"),
        (" (pid: ", r"^Process (?P<task>.{1,32}) \(pid: (?P<pid>\d+), "),
        # Of alpha, ia64 and sparc.
        (": Oops", r"^(?P<task>\S.{0,31}?)[(\[](?P<pid>\d+)[)\]]: Oops"),
        ("by ", r"\bby (?:task )?(?P<task>[^/\n]{1,32}(?:/\d+:[^/\n]+)?)/(?P<pid>\d+)\b"),
        ('comm "', r'comm "(?P<task>[^"]{1,32})", pid (?P<pid>\d+)'),
    )
)
_CPU = re.compile(r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: ")
#: Functions of work that a report of a workqueue names in words.
_WORK = re.compile(
    r"in-flight: \d+(?:\(RESCUER\))?:(?P<running>[A-Za-z_][\w.]*)"
    r"|(?:last function: |workfn=)(?P<last>[A-Za-z_][\w.]*)"
)
_ON_CPU = re.compile(r"\b(?:CPU#|on cpu |CPU: |cpu: )(?P<cpu>\d+)\b")
_TAINT = re.compile(r"Tainted: (?P<taint>[A-Z](?:[A-Z ]*[A-Z])?)(?= |$|:|\))", re.MULTILINE)
#: Behind a function: its offset, or what scripts/decode_stacktrace.sh has made of it.
_PLACE = r"(?:\+0x| \(\S+:\d)"
#: Where lockdep says which lock is wanted: "ffff... (&lock){+.+.}-{3:3}, at: func+0x12/0x34".
_LOCK_AT = re.compile(r"\bat: (?:\[<[^>\n]{1,20}>\] )*([A-Za-z_][\w.$]*)" + _PLACE)
_UNLOCK_AT = re.compile(
    r"trying to release lock .* at:\n(?:\[<[^>\n]{1,20}>\] )*\s*([A-Za-z_][\w.$]*)" + _PLACE
)
_NESTED_AT = re.compile(
    r" is trying to lock:\n.*\bat: (?:\[<[^>\n]{1,20}>\] )*([A-Za-z_][\w.$]*)" + _PLACE
)
#: The interrupt that takes a lock: with it the order of locks becomes a deadlock.
_IN_INTERRUPT = re.compile(
    r"which became (?:HARD|SOFT)IRQ-irq-safe at:\n(?P<stack>.*?)(?=\n\s*to a (?:HARD|SOFT)IRQ|\Z)",
    re.DOTALL,
)
#: The functions that an interrupt has, as __report_bad_irq() lists them.
_HANDLERS = re.compile(
    r"^[ \t]*handlers:\n(?P<list>(?:\s*\[<[^>\n]{1,20}>\] .*\n?)+)", re.MULTILINE
)
_IRQ_ANCHORS = frozenset({"nobody cared", "bogus return value"})
_HANDLER = re.compile(r">\] (?:threaded \[<[^>\n]{1,20}>\] )?(?!irq_default_)([A-Za-z_][\w.$]*)")
_ACCESS = re.compile(r"^[ \t]*(Read|Write) (?:of size|at addr) ", re.MULTILINE)
#: But "EXT4-fs" and "IPv6" are names.
_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,16}\b|(?<!EXT)(?<!ext)(?<!IPv)\d+")
_LOCK_KINDS = frozenset({K.DEADLOCK, K.INVALID_WAIT_CONTEXT})
_LOCK_ANCHORS = frozenset(
    {"lock held when", "held lock freed", "still has locks", "lock held at task"}
)

#: What differs from line to line of one report in a log that names the levels.
_LEVEL = re.compile(
    r"\b(?:emerg|alert|crit|critical|err|error|warn|warning|notice|info|debug)\b", re.IGNORECASE
)
#: Characters of a prefix; what is longer is a program's talk.
_MAX_PREFIX = 200
#: Kinds whose reports end with a marker, so that one without it was cut.
MARKED = frozenset(
    {
        K.OOPS,
        K.PAGE_FAULT,
        K.NULL_DEREFERENCE,
        K.GENERAL_PROTECTION,
        K.DIVIDE_ERROR,
        K.INVALID_OPCODE,
        K.BUG,
        K.WARNING,
        K.KASAN,
    }
)
#: Kinds after which this kernel does nothing any more.
_FATAL = frozenset(
    {
        K.PANIC,
        K.OOM_PANIC,
        K.INIT_KILLED,
        K.NO_INIT,
        K.NO_ROOT,
        K.DOUBLE_FAULT,
        K.UNEXPECTED_RESET,
        K.HANG,
        K.STACK_CORRUPTION,
    }
)


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """A report while its lines come in."""

    rule: Rule
    match: re.Match[str]
    #: As far as the first line tells it.
    kind: CrashKind
    caller: str
    #: The first line carried a kernel time or caller, so all its lines do, unless it is `torn`.
    stamped: bool
    start_line: int
    start_offset: int
    end_line: int
    end_offset: int
    #: The first line stood behind a program's words: its marks tell nothing of the other lines'.
    torn: bool = False
    #: Whose lines go to it.
    callers: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    #: How many of `lines` are known to belong; the rest may be somebody else's.
    kept: int = 1
    announced: bool = False
    has_trace: bool = False
    has_die: bool = False
    #: The heading of a stack trace was seen.
    has_stack: bool = False
    #: How many of `lines` there were with its end marker; 0 while that has not come. Its panic may
    #: follow, and on arm64 up to 4.6 its stack.
    closed_at: int = 0
    #: Lines since then that are not its own.
    foreign_after: int = 0
    #: Its first line came twice in a row, so all its lines may.
    doubled: bool = False
    panicked: bool = False
    #: What an unknown log writer put before the first line, and may put before the others.
    prefix: re.Pattern[str] | None = None
    #: Its end marker was seen.
    ended: bool = False

    @classmethod
    def begin(
        cls, rule: Rule, match: re.Match[str], line: KernelLine, *, torn: bool = False
    ) -> Draft:
        """A report of which only the first line is known."""
        return cls(
            rule=rule,
            match=match,
            kind=_kind(rule, match),
            caller=line.caller,
            stamped=line.stamped,
            torn=torn,
            start_line=line.number,
            start_offset=line.start,
            end_line=line.number,
            end_offset=line.end,
            lines=[match.string[match.start() :]],
            has_die=rule.is_die,
            prefix=_prefix(match.string[: match.start()]),
        )


def _prefix(before: str) -> re.Pattern[str] | None:
    """What looks like `before` but for its numbers and its inner spaces."""
    words = before.rstrip()
    if not words or len(words) > _MAX_PREFIX:
        return None
    shape = re.sub(r"\d+", r"\\d+", re.escape(words))
    shape = re.sub(r"(?:\\ )+", r"\\s*", _LEVEL.sub(r"\\w+", shape))
    return re.compile(r"\s*" + shape + before[len(words) :][:1])


def _site(match: re.Match[str]) -> tuple[CrashKind, str] | None:
    """What the file of a WARN or BUG tells: a kind and its words."""
    file = match.groupdict().get("file")
    if not file:
        return None
    for name, kind, words in _BY_FILE:
        if file.startswith(name) or f"/{name}" in file:
            return kind, words
    return None


def _kind(rule: Rule, match: re.Match[str]) -> CrashKind:
    """The kind, for which a WARN's or BUG's file counts more than its rule."""
    site = _site(match)
    return rule.kind if site is None else site[0]


def build(
    draft: Draft, *, cut: bool, caused_by: CrashReport | None, names: AddressNames | None
) -> CrashReport:
    """Make the report. `cut`: the log ended, or fell silent, before its end was seen."""
    text = "\n".join(draft.lines[: draft.kept])
    if names is not None:
        text = names.put(text, draft.start_offset)
    kind = draft.kind
    found = stack.entries(text)
    function = blame.choose(kind, list(_named(draft, text)), found, text)
    task, pid, cpu = _who(draft, text)
    taint = _TAINT.search(text)
    return CrashReport(
        kind=kind,
        title=_title(draft, function, text),
        function=function,
        frames=_frames(found, function),
        start_line=draft.start_line,
        end_line=draft.end_line,
        start_offset=draft.start_offset,
        end_offset=draft.end_offset,
        task=task,
        pid=pid,
        cpu=cpu,
        taint=taint["taint"].replace(" ", "") if taint else None,
        fatal=kind in _FATAL or draft.panicked or draft.rule.is_panic,
        truncated=cut and not draft.ended and kind in MARKED,
        caused_by=caused_by,
        text=text,
    )


def _frames(entries: list[stack.Entry], function: str | None) -> tuple[Frame, ...]:
    """The frames, among which the guilty function always is, even if only a first line has it."""
    frames = tuple(entry.frame for entry in entries)
    if function is None or any(frame.function == function for frame in frames):
        return frames
    return (Frame(function=function, symbol=function), *frames)


def _first_lines(draft: Draft, text: str) -> Iterator[re.Match[str]]:
    """The first line, and those like it: a symbolised log has one for each inlined function."""
    for line in text.split("\n"):
        match = draft.rule.pattern.match(line.strip())
        if match is None:
            break
        yield match


def _named(draft: Draft, text: str) -> Iterator[str]:
    """The functions that the report itself names, the innermost first."""
    if "at" in draft.match.groupdict():
        firsts = list(_first_lines(draft, text))
        whole = [match for match in firsts if not match.string.endswith("[inline]")]
        yield from (stack.base_name(match["at"] or "") for match in whole or firsts)
    if draft.rule.kind is K.WORKQUEUE_LOCKUP or "workqueue" in draft.match.string:
        for work in _WORK.finditer(text):
            yield stack.base_name(work["running"] or work["last"])
    if draft.rule.anchor in _IRQ_ANCHORS and (handlers := _HANDLERS.search(text)) is not None:
        yield from map(stack.base_name, _HANDLER.findall(handlers["list"]))
    where = None
    if "-safe -> " in draft.match.string:
        where = _IN_INTERRUPT.search(text)
        if where is not None:
            yield from (e.frame.function for e in stack.entries(where["stack"]))
    if draft.kind in _LOCK_KINDS or draft.rule.anchor in _LOCK_ANCHORS:
        where = _LOCK_AT.search(text)
    elif draft.kind is K.LOCK_MISUSE:
        where = _UNLOCK_AT.search(text) or _NESTED_AT.search(text)
    if where is not None:
        yield stack.base_name(where[1])


def _title(draft: Draft, function: str | None, text: str) -> str:
    groups = {name: _stable(value or "") for name, value in draft.match.groupdict().items()}
    site = _site(draft.match)
    label = (site[1] if site else draft.rule.label).format_map(groups)
    if draft.kind is K.KASAN and (access := _ACCESS.search(text)):
        label += f" {access[1].lower()}"
    return f"{label} in {function}" if function and "{message}" not in draft.rule.label else label


def _stable(words: str) -> str:
    """Words without what differs from one occurrence of a bug to the next."""
    return _NUMBER.sub("N", words).strip(" .:,")


def _who(draft: Draft, text: str) -> tuple[str | None, int | None, int | None]:
    groups = draft.match.groupdict()
    found = (pattern.search(text) for words, pattern in _TASKS if words in text)
    who = next(filter(None, found), None)
    task = groups.get("task") or (who["task"].strip() if who else None)
    pid = groups.get("pid") or (who["pid"] if who else None)
    cpu = groups.get("cpu")
    if cpu is None and (on := _CPU.search(text) or _ON_CPU.search(text)):
        cpu = on["cpu"]
    return task, None if pid is None else int(pid), None if cpu is None else int(cpu)
