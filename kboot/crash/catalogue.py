"""Which lines begin a report: one row per printing site, or family of them, in Linux 2.6 to 6.x."""

from __future__ import annotations

from kboot.crash.checks import LOCKDEP, MEMORY, SANITIZERS, STALLS
from kboot.crash.model import CrashKind
from kboot.crash.rule import AT, AT_OFFSET, PANIC, die, panic, row, traced

K = CrashKind

#: What cannot be handled: the words of arm64's fault_info[], and of others' own.
_NO_ACCESS = r"(?:paging req|[\w ]+? (?:at|for|from|in|on|to)\b|[\w ]+ at$)"
_BUGS = (
    row(
        K.BUG,
        "BUG",
        r"[Kk]ernel BUG (?:in \S+ )?at (?P<file>\S+:\d+|(?:0x)?[0-9a-f]{8,})",
        "kernel BUG",
    ),
    # Of architectures that have no trap for it, before the panic.
    row(K.BUG, "BUG", r"BUG: failure at (?P<file>[^\s:]+:\d+)/(?P<at>\w+)\(\)", "kernel BUG"),
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
    # The same on powerpc up to 2.6.3x, and everywhere up to 2.6.17.
    traced(
        K.WARNING, "Badness ", r"Badness (?:in (?P<at>\w+) )?at (?P<file>[^\s:]+):\d+$", "WARNING"
    ),
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
    *SANITIZERS,
    *LOCKDEP,
    *STALLS,
    *MEMORY,
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
        b"Badness ",
        b"RTNL: assertion",
    ),
    *(b"sysctl table check", b"hw csum failure", b"allocation failed, size="),
    *(b"kmemleak: ", b"fatal: assertion"),
)
