"""What stands under a report's first lines, as each architecture prints it, in short.

In a table of reports, ``@x86 tdev_read tdev_ioctl`` is the registers of a CPU that was in
``tdev_read``, called by ``tdev_ioctl``, and its stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

WHO = "CPU: 1 PID: 77 Comm: tester Not tainted 6.1.0 #1"
END = "---[ end trace 0000000000000000 ]---"
CUT = "------------[ cut here ]------------"
_SIZE = "+0x1c/0x240"


def frames(*functions: str) -> list[str]:
    return [f" {name}{_SIZE}" for name in functions]


def dump(*functions: str) -> list[str]:
    stack = frames("dump_stack_lvl", *functions)
    return [WHO, "Hardware name: QEMU Standard PC", "Call Trace:", " <TASK>", *stack, " </TASK>"]


def x86(pc: str, *stack: str) -> list[str]:
    registers = [WHO, f"RIP: 0010:{pc}{_SIZE}", "Code: 0f 1f 44 00 00 <0f> 0b"]
    return [*registers, "Call Trace:", " <TASK>", *frames(*stack), " </TASK>", END]


def arm64_registers(pc: str, *stack: str) -> list[str]:
    return [
        WHO,
        "pstate: 60000005 (nZCv daif -PAN -UAO)",
        f"pc : {pc}{_SIZE}",
        "lr : tdev_ioctl+0x10/0x40",
        "sp : ffff80000c7e33f0",
        "x29: ffff80000c7e33f0 x28: ffff80000c7e3b50",
        "Call trace:",
        *frames(pc, *stack),
    ]


def arm64(pc: str, *stack: str) -> list[str]:
    return ["Modules linked in:", *arm64_registers(pc, *stack), "Code: d4210000", END]


def arm64_dump(*functions: str) -> list[str]:
    stack = frames("dump_backtrace", "show_stack", "dump_stack_lvl", *functions)
    return [WHO, "Call trace:", *stack]


def arm(pc: str, caller: str, *_: str) -> list[str]:
    return [
        "Modules linked in:",
        WHO,
        f"PC is at {pc}{_SIZE}",
        f"LR is at {caller}+0x10/0x40",
        "pc : [<c0101234>]    lr : [<c0101234>]    psr: 60000013",
        "Process tester (pid: 77, stack limit = 0x12345678)",
        "Stack: (0xc3ae59f8 to 0xc3ae6000)",
        "59e0: c0343cdc c0343cdc",
        f" {pc} from {caller}+0x10/0x40",
        f" {caller} from sys_ioctl+0x20/0x40",
        "Code: e5933000",
        END,
    ]


def riscv_registers(pc: str, caller: str, *_: str) -> list[str]:
    return [
        WHO,
        f"epc : {pc}{_SIZE}",
        f" ra : {caller}+0x10/0x40",
        "epc : ffffffff80002a3c ra : ffffffff80002a3c sp : ff2000000401bd10",
        "status: 0000000200000120 badaddr: 0000000000000000 cause: 000000000000000f",
        f"[<ffffffff80002a3c>] {pc}{_SIZE}",
        f"[<ffffffff80002a40>] {caller}+0x10/0x40",
    ]


def s390_registers(pc: str, caller: str, *_: str) -> list[str]:
    return [
        WHO,
        f"Krnl PSW : 0704e00180000000 000000000012345a ({pc}{_SIZE})",
        "           R:0 T:1 IO:1 EX:1 Key:0 M:1 W:0 P:0 AS:3 CC:2 PM:0 RI:0 EA:3",
        "Krnl GPRS: 0000000000000001 0000000000000000",
        "Krnl Code: 000000000012345a: a7180000 lhi %r1,0",
        "Call Trace:",
        f" [<000000000012345a>] {pc}{_SIZE}",
        f" [<000000000012345a>] {caller}+0x10/0x40",
        "Last Breaking-Event-Address:",
        " [<000000000012345a>] tdev_other+0x10/0x40",
    ]


def ppc_registers(pc: str, caller: str, *_: str) -> list[str]:
    return [
        WHO,
        "NIP:  c0000000000a1b2c LR: c0000000000a1b3c CTR: 0000000000000000",
        "REGS: c000000003a1f890 TRAP: 0300   Not tainted  (6.1.0)",
        "MSR:  8000000002009033 <SF,VEC,EE,ME,IR,DR,RI,LE>  CR: 24004222  XER: 00000000",
        "GPR00: c0000000000a1b3c c000000003a1fb30",
        f"NIP [c0000000000a1b2c] {pc}{_SIZE}",
        f"LR [c0000000000a1b3c] {caller}+0x10/0x40",
        "Call Trace:",
        f"[c000000003a1fb30] [c0000000000a1b2c] {pc}{_SIZE}",
        f"[c000000003a1fb70] [c0000000000a1b3c] {caller}+0x10/0x40",
    ]


def mips(pc: str, caller: str, *_: str) -> list[str]:
    return [
        WHO,
        "$ 0   : 00000000 00000001",
        f"epc   : 80012345 {pc}{_SIZE}",
        f"ra    : 80012345 {caller}+0x10/0x40",
        "Status: 1100ff03 KERNEL EXL IE",
        "Cause : 00800008 (ExcCode 02)",
        "Call Trace:",
        f"[<80012345>] {pc}{_SIZE}",
        f"[<80012345>] {caller}+0x10/0x40",
        "Code: 00000000",
        END,
    ]


def loongarch(pc: str, caller: str, *_: str) -> list[str]:
    return [
        "Oops[#1]:",
        WHO,
        "$ 0   : 00000000",
        f"   ra: 9000000000201234 {caller}+0x10/0x40",
        f"  ERA: 9000000000201234 {pc}{_SIZE}",
        " CRMD: 000000b0 (PLV0 -IE -DA +PG)",
        "ESTAT: 00010000 [PIL] (IS= ECode=1 EsubCode=0)",
        "Call Trace:",
        f"[<9000000000201234>] {pc}{_SIZE}",
        f"[<9000000000201234>] {caller}+0x10/0x40",
        END,
    ]


def sparc(pc: str, caller: str, *_: str) -> list[str]:
    return [
        WHO,
        "TSTATE: 0000004480001605 TPC: 0000000000404966 TNPC: 000000000040496a Y: 00000000",
        f"TPC: <{pc}{_SIZE}>",
        f"RPC: <{caller}+0x10/0x40>",
        f"I7: <{caller}+0x10/0x40>",
        "Call Trace:",
        f" [0000000000404966] {caller}+0x10/0x40",
    ]


_TRACES: dict[str, Callable[..., list[str]]] = {
    "frames": frames,
    "dump": dump,
    "x86": x86,
    "arm64": arm64,
    "arm64-registers": arm64_registers,
    "arm64-dump": arm64_dump,
    "arm": arm,
    "riscv": lambda *stack: [*riscv_registers(*stack), END],
    "riscv-registers": riscv_registers,
    "s390": lambda *stack: [*s390_registers(*stack), END],
    "s390-registers": s390_registers,
    "ppc": lambda *stack: [*ppc_registers(*stack), END],
    "ppc-registers": ppc_registers,
    "mips": mips,
    "loongarch": loongarch,
    "sparc": sparc,
    "who": lambda: [WHO],
    "end": lambda: [END],
    "cut": lambda: [CUT],
    "double": lambda: ["=" * 66],
    "single": lambda: ["-" * 66],
}
_OTHERS = ("tdev_ioctl", "sys_ioctl")


def expand(lines: Sequence[str]) -> Iterator[str]:
    """The lines, with what each one that begins with an @ stands for."""
    for line in lines:
        if not line.startswith("@"):
            yield line
            continue
        name, *functions = line[1:].split()
        if name in ("who", "end", "cut", "double", "single"):
            yield from _TRACES[name]()
        else:
            yield from _TRACES[name](*_stack(functions))


def _stack(functions: Sequence[str]) -> Sequence[str]:
    """Those functions, or tdev_read; and who has called them, if that is not told."""
    named = functions or ["tdev_read"]
    return named if len(named) > 1 else [*named, *_OTHERS]
