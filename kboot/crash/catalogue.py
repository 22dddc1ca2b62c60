"""Which lines begin a report: one row per printing site, or family of them, in Linux 4.x to 6.x."""

from __future__ import annotations

from kboot.crash.model import CrashKind
from kboot.crash.rule import AT, AT_OFFSET, PANIC, RCU, WATCHDOG, die, lockdep, panic, row, traced

K = CrashKind

#: The words KASAN knows; up to 4.1 "out of bounds access", "use after free".
_KASAN = (
    r"(?P<what>[\w -]*?(?:-free|-bounds|-deref|-access|-crash|-scope|-return|out of bounds access"
    r"|use after free|wild memory access|user memory access|unknown crash))"
)
_WHAT = r"(?P<what>[\w -]+?)"
_SANITIZERS = (
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

_LOCKDEP = (
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

_STALLS = (
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

_MEMORY = (
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

#: What cannot be handled: the words of arm64's fault_info[], and of others' own.
_NO_ACCESS = r"(?:paging req|[\w ]+? (?:at|for|from|in|on|to)\b|[\w ]+ at$)"
_BUGS = (
    row(
        K.BUG,
        "BUG",
        r"[Kk]ernel BUG (?:in \S+ )?at (?P<file>\S+:\d+|(?:0x)?[0-9a-f]{8,})",
        "kernel BUG",
    ),
    # Without CONFIG_DEBUG_BUGVERBOSE.
    row(K.BUG, "BUG", rf"[Kk]ernel BUG at {AT_OFFSET}", "kernel BUG"),
    row(K.BUG, "[#", r"Kernel (?:BUG|bug detected)\s?\[#\d", "kernel BUG", is_die=True),
    row(
        K.NULL_DEREFERENCE,
        "NULL pointer",
        r"(?:BUG: |CPU \d+ )*(?:[Uu]nable to handle )?[Kk]ernel NULL pointer dereference",
        "NULL pointer dereference",
    ),
    # "... in func" is a title that somebody gave to a report.
    row(
        K.PAGE_FAULT,
        "BUG",
        r"BUG: [Uu]nable to handle (?:kernel|page|user|unknown)(?!.* in \w+$)",
        "page fault",
    ),
    row(
        K.PAGE_FAULT,
        "nable to handle",
        rf"(?:CPU \d+ )?Unable to handle kernel {_NO_ACCESS}",
        "page fault",
    ),
    row(K.STACK_OVERFLOW, "BUG", r"BUG: (?:[\w#]+ )?stack guard page was hit", "stack overflow"),
    # s390 and ppc32, before the registers and the panic.
    traced(
        K.STACK_OVERFLOW,
        "ernel stack overflow",
        r"Kernel stack overflow(?:\.?$| in process )",
        "stack overflow",
    ),
    # arm has no trap for it: __div0() prints a trace and goes on.
    row(K.DIVIDE_ERROR, "by zero in kernel", r"Division by zero in kernel", "division by zero"),
    traced(
        K.WARNING,
        "duplicate filename",
        r"sysfs: cannot create duplicate filename",
        "duplicate name in sysfs",
    ),
    # i386 up to 3.x.
    traced(
        K.STACK_OVERFLOW,
        "stack overflow: ",
        r"do_IRQ: (?:near )?stack overflow: ",
        "stack overflow",
    ),
    row(K.STACK_OVERFLOW, "Insufficient stack", "Insufficient stack space to", "stack overflow"),
    row(K.ATOMIC_SLEEP, "BUG", r"BUG: sleeping function called from", "sleeping in atomic context"),
    row(K.ATOMIC_SLEEP, "BUG", r"BUG: (?:\w+ )?scheduling while atomic", "scheduling while atomic"),
    traced(
        K.ATOMIC_SLEEP,
        "bad: scheduling",
        r"bad: scheduling from the idle thread",
        "scheduling from the idle thread",
    ),
    # cant_sleep() and cant_migrate().
    row(K.ATOMIC_SLEEP, "BUG", r"BUG: assuming (?P<what>[\w ]+) at", "assuming {what}"),
    row(
        K.ATOMIC_SLEEP,
        "BUG",
        r"BUG: using (?P<what>\w+)\(?\)? in preemptible",
        "using {what} in preemptible code",
    ),
    row(
        K.NETDEV_LEAK,
        "unregister_netdevice: ",
        r"unregister_netdevice: waiting for \S+ to become free",
        "unregister_netdevice: waiting for a device to become free",
    ),
    row(K.BUG, "BUG", r"BUG: Dentry \S+ .*still in use", "dentry still in use"),
    # Before the BUG() or WARN() of its panic handler.
    row(K.BUG, "panicked at", r"rust_kernel: panicked at (?:'.*', )?\S+:\d+:\d+", "Rust panic"),
    traced(K.BUG, "UBIFS assert", r"(?:UBIFS error .*: )?UBIFS assert failed", "UBIFS assertion"),
    traced(
        K.BUG,
        "tried to init an initialized",
        r"kobject.*: tried to init an initialized object",
        "kobject initialized twice",
    ),
    traced(
        K.BUG, "fatal: assertion", r"(?:gfs2|GFS2): fsid=\S* fatal: assertion ", "GFS2 assertion"
    ),
    # ZFS, which leaves the thread asleep for ever.
    traced(K.BUG, "PANIC at ", r"PANIC at \S+\.[ch]:\d+:(?P<at>\w+)\(\)$", "ZFS assertion"),
    # KVM on arm64, before the panic.
    row(K.BUG, "BUG", rf"(?:kvm \[\d+\]: )?nVHE hyp BUG at: {AT_OFFSET}", "nVHE hyp BUG"),
    row(K.BUG, "Busy inodes after", r"VFS: Busy inodes after unmount of", "busy inodes"),
    row(K.DOUBLE_FAULT, "ANIC: ", r"(?:traps: )?PANIC: double fault", "double fault"),
    row(K.OOPS, "ANIC: ", r"(?:traps: )?PANIC: early exception", "early exception"),
    row(
        K.MACHINE_CHECK,
        "Machine Check Exception",
        r"(?:mce: )?(?:\[Hardware Error\]: )?CPU \d+: Machine Check Exception",
        "machine check",
    ),
    # arm, before its "Unhandled fault".
    row(
        K.OOPS,
        "Alignment trap: ",
        r"Alignment trap: not handling instruction",
        "unhandled fault",
        needs_die=True,
    ),
    row(
        K.OOPS,
        "Unhandled ",
        r"Unhandled (?P<what>fault|prefetch abort)(?:: .*\(0x[0-9a-f]+\))? at 0x",
        "unhandled {what}",
        needs_die=True,
    ),
    # parisc shows the stack first, and panics afterwards.
    traced(
        K.PAGE_FAULT,
        "Kernel Fault: ",
        r"Kernel Fault: Code=\d+ \(.+\) at addr [0-9a-f]+$",
        "page fault",
    ),
    # arm64 since 5.12, the successor of "Bad mode in".
    row(
        K.OOPS,
        "Unhandled ",
        r"Unhandled (?:\d+-bit )?(?:\w+ )?(?P<what>\w+) exception on CPU ?\d+",
        "unhandled {what} exception",
    ),
    row(K.BUG, "CFI failure", rf"CFI failure at {AT}", "CFI failure"),
    row(K.BUG, "CFI failure", r"CFI failure \(target: ", "CFI failure"),
    row(K.OOPS, "SError Interrupt", r"SError Interrupt on CPU ?\d+, code", "SError"),
    row(K.OOPS, "Bad mode in ", r"Bad mode in .* handler detected", "bad mode"),
)

#: See `model.COMPLAINTS`.
_COMPLAINTS = (
    traced(
        K.COMPLAINT,
        "page allocation failure",
        r"(?P<task>\S.{0,15}): page allocation failure[:.]",
        "page allocation failure",
    ),
    traced(
        K.COMPLAINT, "vmalloc error", r"(?P<task>\S.{0,15}): vmalloc error: size", "vmalloc failure"
    ),
    traced(
        K.COMPLAINT,
        " failure",
        r"(?P<task>\S.{0,15}): vmalloc: allocation failure",
        "vmalloc failure",
    ),
    traced(
        K.COMPLAINT,
        "allocation failed, size=",
        r"percpu: (?:.{1,30} )?allocation failed, size=",
        "percpu allocation failure",
    ),
    # By the driver's or hardware's sum, a packet is intact, but it is not.
    traced(
        K.COMPLAINT, "hw csum failure", r".{1,40}: hw csum failure$", "wrong checksum by hardware"
    ),
    traced(K.COMPLAINT, "nobody cared", r"irq \d+: nobody cared", "interrupt that nobody handles"),
    traced(
        K.COMPLAINT,
        "bogus return value",
        r"irq event \d+: bogus return value",
        "interrupt handler that returns nonsense",
    ),
    row(
        K.COMPLAINT,
        "MSR access error",
        rf"unchecked MSR access error: (?P<what>RDMSR|WRMSR)(?:.* at rIP: 0x\w+ \({AT})?",
        "unchecked {what}",
        needs_trace=True,
    ),
    row(
        K.COMPLAINT,
        "dev_watchdog+0x",
        rf"WARNING: .* (?=dev_watchdog\+0x){AT}",
        "transmit queue timed out",
    ),
    # Since 6.10 without a WARNING; the driver's and device's names come first.
    row(
        K.COMPLAINT,
        "NETDEV WATCHDOG",
        r".*NETDEV WATCHDOG: CPU: (?P<cpu>\d+): transmit queue \d+ timed out",
        "transmit queue timed out",
    ),
)

_PANICS = (
    panic(K.OOM_PANIC, r"[Oo]ut of memory|deadlocked on memory", "panic: out of memory"),
    panic(K.INIT_KILLED, r"Attempted to kill init!", "panic: attempted to kill init"),
    panic(K.NO_ROOT, r"VFS: Unable to mount root fs", "panic: unable to mount root fs"),
    panic(K.NO_INIT, r"No (?:working )?init found|Requested init", "panic: no working init"),
    panic(K.MACHINE_CHECK, r"[Mm]achine check", "panic: machine check"),
    row(
        K.STACK_CORRUPTION,
        PANIC,
        rf"Kernel panic - not syncing: (?:stack-protector: )?Kernel stack is corrupted in: {AT}",
        "stack corruption",
    ),
    panic(K.STACK_CORRUPTION, r"stack-protector|corrupted stack end", "stack corruption"),
    panic(K.PANIC, r"[Kk]ernel stack overflow", "panic: kernel stack overflow"),
    panic(K.HARD_LOCKUP, r"Watchdog detected hard LOCKUP", "hard lockup"),
    row(K.PANIC, PANIC, r"Kernel panic(?: - not syncing)?: (?P<message>.*\S)", "panic: {message}"),
    row(K.PANIC, PANIC, r"Kernel panic - not syncing", "panic", needs_trace=True),
    # The code that unpacks the kernel, before its first line; "reboot: System halted" is no fault.
    row(K.PANIC, "-- System halted", r"-- System halted$", "panic: the kernel was not unpacked"),
)

_DIES = (
    die(
        K.GENERAL_PROTECTION,
        "(?:segment-related )?general[_ ]protection",
        "general protection fault",
    ),
    die(
        K.DIVIDE_ERROR,
        r"(?:(?:fixpoint|decimal|HFP) )?divide[_ ](?:error|exception)",
        "divide error",
    ),
    die(K.BUG, "BUG|Kernel BUG", "kernel BUG"),
    die(
        K.INVALID_OPCODE,
        "invalid op(?:code)?|invalid_op|[Uu]ndefined instr|[Ii]llegal instr",
        "invalid opcode",
    ),
    die(K.DOUBLE_FAULT, "double fault", "double fault"),
    die(K.STACK_OVERFLOW, "kernel stack overflow", "stack overflow"),
    die(
        K.OOPS,
        r"stack segment|int3|debug|alignment|overflow|bounds|invalid TSS|segment not|control prot"
        r"|coprocessor|device not|illegal operation|addressing exc|monitor event|specification exc"
        r"|protection exc|data exc|synchronous|SError|kernel stack|trap|unexpected",
        "oops",
    ),
    row(
        K.OOPS,
        "[#",
        r"(?:Internal error: )?Oops(?:\b.{0,99})?\[#\d{1,4}\](?!\()",
        "oops",
        is_die=True,
    ),
    row(K.OOPS, "[#", r"Internal error: .{0,99}\[#\d{1,4}\](?!\()", "oops", is_die=True),
    # Up to 2.6.2x without the "#".
    row(
        K.GENERAL_PROTECTION,
        "fault: 0000 [",
        r"general protection fault: 0000 \[\d+\]",
        "general protection fault",
        is_die=True,
    ),
    row(
        K.DIVIDE_ERROR,
        "divide error: 0000 [",
        r"divide error: 0000 \[\d+\]",
        "divide error",
        is_die=True,
    ),
    row(
        K.INVALID_OPCODE,
        "invalid opcode: 0000 [",
        r"invalid opcode: 0000 \[\d+\]",
        "invalid opcode",
        is_die=True,
    ),
    # MIPS and others: "Reserved instruction in kernel code[#1]:".
    row(K.OOPS, "[#", r"[A-Z][A-Za-z ]+\[#\d+\]:?$", "oops", is_die=True, is_vague=True),
)

_CPU_AND_PID = r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+)"
_WARNINGS = (
    row(
        K.WARNING,
        "WARNING: ",
        rf"WARNING: {_CPU_AND_PID} at (?P<file>\S+?):\d+(?: {AT})?",
        "WARNING",
    ),
    # Up to 3.11 without CPU and task.
    row(K.WARNING, "WARNING: ", rf"WARNING: at ?(?P<file>\S+?):\d+ {AT_OFFSET}", "WARNING"),
    # Up to 4.6 report_bug() of arm64, powerpc and s390 tells no function.
    traced(
        K.WARNING,
        "WARNING: ",
        r"WARNING: at (?:(?P<file>[^\s:]+):\d+$|\S+ \[verbose debug info unavailable\])",
        "WARNING",
    ),
    # The same on powerpc up to 2.6.3x.
    traced(K.WARNING, "Badness at ", r"Badness at (?P<file>[^\s:]+):\d+$", "WARNING"),
    # Up to 4.14 no WARN.
    traced(K.WARNING, "RTNL: assertion", r"RTNL: assertion failed at \S+ ", "RTNL assertion"),
    traced(K.WARNING, "sysctl table check", r"sysctl table check failed: ", "sysctl table check"),
    # Since 6.18: "WARNING: net/core/dev.c:123 at func+0x12/0x34, CPU#0: comm/123", maybe with the
    # condition in front of the file, "[len != 0] ".
    row(
        K.WARNING,
        "WARNING: ",
        rf"WARNING: (?:\[.*\] )?(?P<file>[\w./-]+\.[a-zS]+):\d+ at {AT}"
        r"(?:.*CPU#(?P<cpu>\d+): (?P<task>.+)/(?P<pid>\d+))?",
        "WARNING",
    ),
    row(K.WARNING, "WARNING: ", rf"WARNING: {_CPU_AND_PID}", "WARNING"),
    row(
        K.WARNING,
        "WARNING: ",
        r"WARNING: kernel stack (?:regs|frame pointer) at",
        "bad frame pointer",
    ),
    # The unwinder of x86.
    row(
        K.WARNING,
        "WARNING: ",
        r"WARNING: (?:can't (?:access|dereference)[\w ]* registers|stack going in the wrong "
        rf"direction\?) at (?:\w+ for ip )?{AT_OFFSET}",
        "stack that cannot be unwound",
    ),
    row(
        K.WARNING,
        "WARNING: ",
        r"WARNING: stack recursion on stack type \d",
        "stack that cannot be unwound",
    ),
    row(K.BUG, "BUG", r"BUG: (?P<what>\S.*)", "BUG: {what}", is_vague=True),
    row(K.WARNING, "WARNING: ", r"WARNING: (?P<what>\S.*)", "WARNING: {what}", needs_trace=True),
)

#: Whatever else an architecture has die() say: for lines that no other rule knows.
ANY_DIE = row(
    K.OOPS,
    "[#",
    r"[A-Za-z][^\[\]]{2,99}\[#\d{1,4}\](?=:?$| ?SMP| ?PREEMPT|:? [A-Z])",
    "oops",
    is_die=True,
    needs_trace=True,
)

#: In order of precedence: the most specific row first.
RULES = (
    *_SANITIZERS,
    *_LOCKDEP,
    *_STALLS,
    *_MEMORY,
    *_BUGS,
    *_PANICS,
    *_DIES,
    *_COMPLAINTS,
    *_WARNINGS,
)

#: Every first line contains one of these.
FILTER = (
    *(b"BUG", b"WARNING: ", b"INFO: ", b"Kernel panic", b"[#", b"nable to handle", b"UBSAN: "),
    *(b"ANIC", b"LOCKUP", b"unregister_netdevice: ", b"unreferenced object 0x"),
    *(b"Machine Check Exception", b"Bad mode in ", b"Unhandled ", b"Alignment trap: "),
    *(b"SError Interrupt", b"suspected memory leak", b"Insufficient stack", b"Slab corruption"),
    *(b"slab error in", b"Busy inodes after", b" failure", b"ernel stack overflow"),
    *(b"by zero in kernel", b"duplicate filename", b"nobody cared", b"MSR access error"),
    *(b"NETDEV WATCHDOG", b"vmalloc error", b"kmem_cache_destroy ", b"pagealloc: "),
    *(b"bad: scheduling", b"panicked at", b"UBIFS assert", b"tried to init an initialized"),
    *(b"-- System halted", b"non-responsive CSD lock", b"bogus return value"),
    *(b"fault: 0000 [", b"divide error: 0000 [", b"invalid opcode: 0000 ["),
    *(
        b"Bad page state",
        b"Kernel Fault: ",
        b"stack overflow: ",
        b"Badness at ",
        b"RTNL: assertion",
    ),
    *(b"sysctl table check", b"hw csum failure", b"allocation failed, size="),
    *(b"kmemleak: ", b"fatal: assertion"),
)
