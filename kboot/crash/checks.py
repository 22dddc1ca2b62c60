"""First lines of the kernel's own checks: sanitizers, lockdep, watchdogs, allocators."""

from __future__ import annotations

from kboot.crash.model import CrashKind
from kboot.crash.rule import AT, AT_OFFSET, RCU, WATCHDOG, lockdep, row, traced

K = CrashKind

#: The words KASAN knows; up to 4.1 "out of bounds access", "use after free".
_KASAN = (
    r"(?P<what>[\w -]*?(?:-free|-bounds|-deref|-access|-crash|-scope|-return|out of bounds access"
    r"|use after free|wild memory access|user memory access|unknown crash))"
)
_WHAT = r"(?P<what>[\w -]+?)"
SANITIZERS = (
    row(K.KASAN, "BUG", rf"BUG: KAS[Aa][Nn]: {_KASAN} in {AT}", "KASAN: {what}"),
    row(K.KASAN, "BUG", rf"BUG: KAS[Aa][Nn]: {_KASAN}(?: (?:in|on|at)\b|$)", "KASAN: {what}"),
    # Whatever words the next kernel has.
    row(K.KASAN, "BUG", rf"BUG: KASAN: {_WHAT} in {AT_OFFSET}", "KASAN: {what}"),
    row(K.KMSAN, "BUG", rf"BUG: KMSAN: {_WHAT} in {AT}", "KMSAN: {what}"),
    row(K.KCSAN, "BUG", rf"BUG: KCSAN: (?P<what>[\w :-]+?) in {AT}", "KCSAN: {what}"),
    row(K.KCSAN, "BUG", r"BUG: KCSAN: (?P<what>[\w -]+)", "KCSAN: {what}"),
    row(K.KFENCE, "BUG", rf"BUG: KFENCE: {_WHAT} in {AT}", "KFENCE: {what}"),
    row(K.KFENCE, "BUG", r"BUG: KFENCE: (?P<what>[\w -]+)", "KFENCE: {what}"),
    # "array-index-out-of-bounds in fs/x.c:12:3"; up to 5.4 "Undefined behaviour in fs/x.c:12:3".
    row(K.UBSAN, "UBSAN: ", rf"UBSAN: {_WHAT} in \S+[:/]", "UBSAN: {what}"),
    row(
        K.UBSAN,
        "UBSAN: ",
        rf"(?:Internal error|Oops(?: -)?): UBSAN: {_WHAT}(?:: .*|\s*)\[#",
        "UBSAN: {what}",
        is_die=True,
    ),
    # Where a trap is all that is compiled in: x86 since 6.13, before its die().
    row(K.UBSAN, "UBSAN: ", rf"UBSAN: {_WHAT} (?:at|in) {AT_OFFSET}", "UBSAN: {what}"),
    row(K.MEMORY_LEAK, "BUG", r"BUG: memory leak$", "memory leak"),
    row(K.MEMORY_LEAK, "unreferenced object 0x", r"unreferenced object 0x", "memory leak"),
    row(
        K.MEMORY_LEAK,
        "suspected memory leak",
        r"kmemleak: \d+ new suspected memory leaks",
        "suspected memory leaks",
    ),
    # An object is there that was never freed, or is in two caches: kmemleak gives up.
    traced(
        K.WARNING,
        "kmemleak: Cannot insert",
        r"kmemleak: Cannot insert 0x",
        "kmemleak: overlapping objects",
    ),
    traced(
        K.WARNING,
        "kmemleak: ",
        r"kmemleak: (?P<what>Freeing unknown object|Found object by alias|Unknown object"
        r"|Trying to color unknown object|Scan area larger than object)",
        "kmemleak: {what}",
    ),
)

LOCKDEP = (
    lockdep(
        K.DEADLOCK, ": possible", r"possible (?:circular|recursive) locking", "possible deadlock"
    ),
    lockdep(K.DEADLOCK, ": possible", r"possible irq lock inversion", "possible deadlock"),
    lockdep(K.DEADLOCK, "IRQ-safe -> ", r"(?:HARD|SOFT)IRQ-safe -> ", "possible deadlock"),
    lockdep(K.DEADLOCK, "-unsafe", r"[\w-]+-safe -> [\w-]+-unsafe lock order", "possible deadlock"),
    # A real one, between rtmutexes, up to 5.9.
    lockdep(K.DEADLOCK, "BUG", "circular locking deadlock detected", "deadlock"),
    lockdep(K.DEADLOCK, ": inconsistent", "inconsistent lock state", "inconsistent lock state"),
    lockdep(K.SUSPICIOUS_RCU, "uspicious RCU", "[Ss]uspicious RCU usage", "suspicious RCU usage"),
    lockdep(K.SUSPICIOUS_RCU, "suspicious rcu_", r"suspicious rcu_\w+", "suspicious RCU usage"),
    lockdep(K.INVALID_WAIT_CONTEXT, "BUG", "Invalid wait context", "invalid wait context"),
    lockdep(K.LOCK_HELD, "lock held when", "lock held when return", "lock held on return"),
    lockdep(K.LOCK_HELD, "held lock freed", "held lock freed", "held lock freed"),
    lockdep(K.LOCK_HELD, "still has locks", r".+/\d+ still has locks held", "lock held at exit"),
    lockdep(K.LOCK_HELD, "lock held at task", "lock held at task exit", "lock held at exit"),
    row(K.LOCK_HELD, "BUG", r"BUG: workqueue leaked (?:lock|atomic)", "workqueue leaked lock"),
    lockdep(K.LOCK_MISUSE, "bad unlock", "bad unlock balance", "bad unlock balance"),
    lockdep(K.LOCK_MISUSE, "bad contention", "bad contention detected", "bad contention"),
    lockdep(K.LOCK_MISUSE, "chain_key coll", "chain_key collision", "chain_key collision"),
    lockdep(K.LOCK_MISUSE, "ested lock was", "[Nn]ested lock was not", "nested lock not taken"),
    row(K.LOCK_MISUSE, "INFO: ", r"INFO: trying to register non-static", "non-static lock key"),
    row(K.LOCK_MISUSE, "BUG", r"BUG: looking up invalid subclass", "invalid lock subclass"),
    row(K.LOCK_MISUSE, "BUG", r"BUG: key \S+ (?:not in|has not been reg)", "bad lock key"),
    row(K.LOCK_MISUSE, "BUG", r"BUG: (?P<what>MAX_\w+) too low", "{what} too low"),
    row(
        K.LOCK_MISUSE,
        "BUG",
        r"BUG: (?P<what>(?:spinlock|rwlock|mutex|rt_mutex)(?:-\w+)?"
        r"(?: wrong CPU| [a-z /-]*?[a-z])?)"
        r"(?= on\b|[^\w /-]|$)",
        "{what}",
    ),
)

STALLS = (
    row(
        K.SOFT_LOCKUP,
        "BUG",
        WATCHDOG + r"BUG: soft lockup (?:-|detected on) CPU#\d+",
        "soft lockup",
    ),
    row(K.HARD_LOCKUP, "LOCKUP", WATCHDOG + r"Watchdog detected hard LOCKUP", "hard lockup"),
    row(
        K.HARD_LOCKUP, "LOCKUP", WATCHDOG + r"CPU \d+ (?:self-)?detected hard LOCKUP", "hard lockup"
    ),
    row(K.HARD_LOCKUP, "LOCKUP", r"Watchdog CPU:\d+ (?:detected )?Hard LOCKUP", "hard lockup"),
    row(K.HARD_LOCKUP, "LOCKUP", r"(?:BUG: )?NMI Watchdog detected LOCKUP", "hard lockup"),
    row(
        K.RCU_STALL,
        "INFO: ",
        RCU + r"INFO: rcu\w*(?: \w+)? (?:self-)?detected (?:expedited )?stall",
        "RCU stall",
    ),
    row(
        K.HUNG_TASK,
        "INFO: ",
        r"INFO: task (?P<task>.+):(?P<pid>\d+) (?:blocked|blocked in I/O wait|can't die) for more",
        "task hung",
    ),
    # A task's name may have any characters, also a line feed.
    traced(K.HUNG_TASK, "INFO: ", r"INFO: task (?P<what>(?!.*blocked).{0,16})$", "task hung"),
    row(K.WORKQUEUE_LOCKUP, "BUG", r"BUG: workqueue lockup - pool", "workqueue lockup"),
    # A CPU does not take what another one sends it: mostly its interrupts are off.
    traced(
        K.HARD_LOCKUP,
        "non-responsive CSD lock",
        r"(?:smp: )?csd: Detected non-responsive CSD lock",
        "CPU that does not answer",
    ),
)

MEMORY = (
    row(K.BAD_PAGE, "BUG", r"BUG: Bad page state in process", "bad page state"),
    # Up to 2.6.28.
    traced(K.BAD_PAGE, "Bad page state", r"Bad page state in process '", "bad page state"),
    row(K.BAD_PAGE, "BUG", r"BUG: Bad rss-counter state", "bad rss-counter state"),
    row(K.BAD_PAGE, "BUG", r"BUG: non-zero (?P<what>\w+) on freeing mm", "non-zero {what}"),
    row(K.BAD_PAGE, "BUG", rf"BUG: Bad {_WHAT} in process", "bad {what}"),
    # slab_bug() in mm/slub.c: "BUG kmalloc-64 (Tainted: G    B): Poison overwritten".
    row(
        K.SLAB_CORRUPTION,
        "BUG",
        r"BUG [\w:.,()-]+ (?:\(.*\)|Tainted: .*|Not tainted.*): (?P<what>[\w -]+)",
        "slab: {what}",
    ),
    # Up to 3.1 without the taint.
    row(
        K.SLAB_CORRUPTION,
        "BUG",
        r"BUG [\w:.,()-]+: (?P<what>(?:Poison|(?:Left |Right )?Redzone|Object padding) overwritten"
        r"|Object (?:already free|is on free-list)|Free(?:chain|list|pointer) corrupt\w*"
        r"|Objects remaining[\w -]*|Invalid object pointer)",
        "slab: {what}",
    ),
    # Up to 5.14; since then a WARN.
    traced(
        K.SLAB_CORRUPTION,
        "kmem_cache_destroy ",
        r"kmem_cache_destroy \S+: Slab cache still has objects",
        "slab: objects left",
    ),
    traced(
        K.DATA_CORRUPTION,
        "pagealloc: ",
        r"pagealloc: (?P<what>memory corruption|single bit error)",
        "page poison: {what}",
    ),
    # All that is left of a report whose first lines were dropped.
    traced(
        K.SLAB_CORRUPTION,
        "INFO: ",
        rf"INFO: (?:(?:Allocated|Freed) in {AT}.* age=\d|(?:Slab|Object) 0x[0-9a-f]+ )",
        "slab: damaged object",
    ),
    row(K.SLAB_CORRUPTION, "Slab corruption", r"Slab corruption", "slab corruption"),
    row(K.SLAB_CORRUPTION, "slab error in", rf"slab error in {AT}", "slab error"),
)
